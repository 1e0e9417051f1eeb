// The ledger: what each user holds of the broker. Whatever a client can make the broker allocate
// carries a charge, taken before and released by the thing's destructor, so that no path can forget
// it.
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "daemon/refusal.h"

enum nb_resource {
    NB_RES_CONNECTIONS,
    NB_RES_CHANNELS,
    NB_RES_BYTES, // channels' and registered memory, at its full size, until it is gone
    NB_RES_FDS,   // that the broker holds or has in flight
    NB_RES_LOADS,
    NB_RES_CLOSING,   // strangers' descriptors that are being closed, for as long as that takes
    NB_RES_JOBS,      // of the service, until they are fetched or cancelled
    NB_RES_JOB_BYTES, // that these have in the state directory
    NB_RES_COUNT,
};

struct nb_resource_info {
    const char *what;
    const char *setting; // of [limits]
    uint64_t fallback;
    int is_bytes;
};
extern const struct nb_resource_info nb_resources[NB_RES_COUNT];

struct nb_user;
struct nb_ledger {
    struct nb_user *users;  // those who hold anything
    const uint64_t *limits; // [NB_RES_COUNT], for each user
};

struct nb_charge {
    struct nb_user *user;
    uint64_t amount[NB_RES_COUNT];
};

// Charges all of `amount` to the user or nothing. Returns 0, -ENOMEM, or NIBBLE_E_QUOTA with a
// sentence of the figures and the setting's name.
int nb_charge_take(struct nb_ledger *ledger, uid_t uid, const uint64_t amount[NB_RES_COUNT],
                   struct nb_charge *ret, struct nb_refusal *refusal);
// The same whatever the limits are, for what takes the place of something that was charged and is
// not gone yet. 0 or -ENOMEM.
int nb_charge_anyway(struct nb_ledger *ledger, uid_t uid, const uint64_t amount[NB_RES_COUNT],
                     struct nb_charge *ret);
// Adds `from`, of the same user, which is zeros then.
void nb_charge_merge(struct nb_charge *to, struct nb_charge *from);
// Gives everything back; a charge of zeros is fine.
void nb_charge_release(struct nb_ledger *ledger, struct nb_charge *charge);
uint64_t nb_ledger_used(const struct nb_ledger *ledger, uid_t uid, enum nb_resource what);
uint64_t nb_ledger_total(const struct nb_ledger *ledger, enum nb_resource what);
