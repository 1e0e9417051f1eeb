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
    [NB_RES_CONNECTIONS] = {"connections", "connections-per-user", 64, 0},
    [NB_RES_CHANNELS] = {"channels", "channels-per-user", 64, 0},
    [NB_RES_BYTES] = {"bytes of channels' and registered memory", "channel-bytes-per-user",
                      UINT64_C(1) << 30, 1},
    [NB_RES_FDS] = {"file descriptors", "fds-per-user", 512, 0},
    [NB_RES_LOADS] = {"loads at a time", "loads-per-user", 8, 0},
    [NB_RES_CLOSING] = {"descriptors that take long to close", "closing-per-user", 16, 0},
    [NB_RES_JOBS] = {"jobs", "jobs-per-user", 16, 0},
    [NB_RES_JOB_BYTES] = {"bytes of jobs on disk", "job-bytes-per-user", UINT64_C(64) << 30, 1},
};

static struct nb_user *user_get(struct nb_ledger *ledger, uid_t uid)
{
    for (struct nb_user *u = ledger->users; u; u = u->next)
        if (u->uid == uid)
            return u;
    struct nb_user *u = calloc(1, sizeof(*u));
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

static void add(struct nb_user *user, const uint64_t amount[NB_RES_COUNT], struct nb_charge *ret)
{
    for (int r = 0; r < NB_RES_COUNT; r++)
        user->used[r] += amount[r];
    user->charges++;
    ret->user = user;
    memcpy(ret->amount, amount, sizeof(ret->amount));
}

int nb_charge_take(struct nb_ledger *ledger, uid_t uid, const uint64_t amount[NB_RES_COUNT],
                   struct nb_charge *ret, struct nb_refusal *refusal)
{
    struct nb_user *user = user_get(ledger, uid);
    if (!user)
        return nb_refuse(refusal, -ENOMEM, "the daemon is out of memory");
    for (int r = 0; r < NB_RES_COUNT; r++) {
        uint64_t limit = ledger->limits[r], used = user->used[r];
        if (!amount[r] || (used <= limit && amount[r] <= limit - used))
            continue;
        user_put(ledger, user);
        return nb_refuse(refusal, NIBBLE_E_QUOTA,
                         "user %u has %" PRIu64 " of %" PRIu64 " %s, and asks for %" PRIu64
                         " more: the administrator can raise %s in [limits]",
                         (unsigned)uid, used, limit, nb_resources[r].what, amount[r],
                         nb_resources[r].setting);
    }
    add(user, amount, ret);
    return 0;
}

int nb_charge_anyway(struct nb_ledger *ledger, uid_t uid, const uint64_t amount[NB_RES_COUNT],
                     struct nb_charge *ret)
{
    struct nb_user *user = user_get(ledger, uid);
    if (!user)
        return -ENOMEM;
    add(user, amount, ret);
    return 0;
}

void nb_charge_merge(struct nb_charge *to, struct nb_charge *from)
{
    if (to->user && from->user)
        from->user->charges--;
    if (from->user)
        to->user = from->user;
    for (int r = 0; r < NB_RES_COUNT; r++)
        to->amount[r] += from->amount[r];
    *from = (struct nb_charge){0};
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

uint64_t nb_ledger_used(const struct nb_ledger *ledger, uid_t uid, enum nb_resource what)
{
    for (const struct nb_user *u = ledger->users; u; u = u->next)
        if (u->uid == uid)
            return u->used[what];
    return 0;
}

uint64_t nb_ledger_total(const struct nb_ledger *ledger, enum nb_resource what)
{
    uint64_t total = 0;
    for (const struct nb_user *u = ledger->users; u; u = u->next)
        total += u->used[what];
    return total;
}
