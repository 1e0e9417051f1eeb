// The ledger's arithmetic. Knows users and amounts, nothing of what they stand for.
#include "daemon/ledger.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/include/nibble.h"

struct nb_user {
    struct nb_user *next;
    uid_t uid;
    unsigned charges;
    uint64_t used[NB_RES_COUNT];
};

const struct nb_resource_info nb_resources[NB_RES_COUNT] = {
    [NB_RES_CONNECTIONS] = {"connections", "connections-per-user", 64},
    [NB_RES_CHANNELS] = {"channels", "channels-per-user", 64},
    [NB_RES_BYTES] = {"bytes of channels' and registered memory", "channel-bytes-per-user",
                      UINT64_C(1) << 30},
    [NB_RES_FDS] = {"file descriptors", "fds-per-user", 512},
    [NB_RES_LOADS] = {"loads at a time", "loads-per-user", 8},
};

static struct nb_user *user_get(struct nb_ledger *ledger, uid_t uid)
{
    for (struct nb_user *u = ledger->users; u; u = u->next)
        if (u->uid == uid)
            return u;
    struct nb_user *u = calloc(1, sizeof *u);
    if (!u)
        return NULL;
    u->uid = uid;
    u->next = ledger->users;
    ledger->users = u;
    return u;
}

static void user_put(struct nb_ledger *ledger, struct nb_user *user)
{
    if (user->charges)
        return;
    struct nb_user **at = &ledger->users;
    while (*at != user)
        at = &(*at)->next;
    *at = user->next;
    free(user);
}

int nb_charge_take(struct nb_ledger *ledger, uid_t uid, const uint64_t amount[NB_RES_COUNT],
                   struct nb_charge *ret, char *ret_text, size_t text_size)
{
    struct nb_user *user = user_get(ledger, uid);
    if (!user) {
        snprintf(ret_text, text_size, "the daemon is out of memory");
        return -ENOMEM;
    }
    for (int r = 0; r < NB_RES_COUNT; r++) {
        uint64_t limit = ledger->limits[r], used = user->used[r];
        if (!amount[r] || (used <= limit && amount[r] <= limit - used))
            continue;
        snprintf(ret_text, text_size,
                 "user %u has %" PRIu64 " of %" PRIu64 " %s, and asks for %" PRIu64
                 " more: the administrator can raise %s in [limits]",
                 (unsigned)uid, used, limit, nb_resources[r].what, amount[r],
                 nb_resources[r].setting);
        user_put(ledger, user);
        return NIBBLE_E_QUOTA;
    }
    for (int r = 0; r < NB_RES_COUNT; r++)
        user->used[r] += amount[r];
    user->charges++;
    ret->user = user;
    memcpy(ret->amount, amount, sizeof ret->amount);
    return 0;
}

void nb_charge_release(struct nb_ledger *ledger, struct nb_charge *charge)
{
    if (!charge->user)
        return;
    for (int r = 0; r < NB_RES_COUNT; r++)
        charge->user->used[r] -= charge->amount[r];
    charge->user->charges--;
    user_put(ledger, charge->user);
    *charge = (struct nb_charge){0};
}

uint64_t nb_ledger_total(const struct nb_ledger *ledger, enum nb_resource what)
{
    uint64_t total = 0;
    for (const struct nb_user *u = ledger->users; u; u = u->next)
        total += u->used[what];
    return total;
}
