// What the kernel's limit of descriptors leaves of the settings. A limit that is too low is named
// once, at the start, rather than met by whoever comes last.
#include "daemon/broker.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/log.h"

#define OWN_FDS   64 // listeners, workers, models: nobody's share, where there are twice as many
#define LEAST     24 // to start at all
#define LEAST_OF  8  // connections, and channels of a device
#define LEAST_FDS 16 // of a user, for a connection of each kind and two channels

static uint64_t lower(uint64_t wanted, uint64_t most, uint64_t least)
{
    most = most > least ? most : least;
    return wanted < most ? wanted : most;
}

static uint64_t raise_limit(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        return 0;
    files.rlim_cur = files.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &files);
    return getrlimit(RLIMIT_NOFILE, &files) < 0 ? 0 : files.rlim_cur;
}

int nb_limits_fit(struct nb_broker *broker)
{
    const struct nb_config *config = &broker->config;
    uint64_t files = raise_limit();
    if (files < LEAST) {
        nb_log(LOG_ERR,
               "the hard limit of descriptors is %llu, and %d are the least: raise it "
               "(LimitNOFILE=, ulimit -Hn)",
               (unsigned long long)files, LEAST);
        return -EMFILE;
    }
    // Half for connections, a quarter for one user's channels and memories.
    uint64_t shared = files - (files < 2 * OWN_FDS ? files / 2 : OWN_FDS);
    memcpy(broker->limits, config->limits, sizeof(broker->limits));
    broker->connections = lower(config->connections, shared / 2, LEAST_OF);
    broker->limits[NB_RES_FDS] = lower(config->limits[NB_RES_FDS], shared / 4, LEAST_FDS);
    broker->worker_channels = (uint32_t)lower(NB_WORKER_CHANNELS, shared, LEAST_OF);
    if (broker->connections < config->connections ||
        broker->limits[NB_RES_FDS] < config->limits[NB_RES_FDS] ||
        broker->worker_channels < NB_WORKER_CHANNELS)
        nb_log(LOG_WARNING,
               "the hard limit of descriptors is %llu, which leaves %llu of %llu connections, %llu "
               "of %llu descriptors for a user and %u of %d channels for a device: raise it "
               "(LimitNOFILE=, ulimit -Hn)",
               (unsigned long long)files, (unsigned long long)broker->connections,
               (unsigned long long)config->connections,
               (unsigned long long)broker->limits[NB_RES_FDS],
               (unsigned long long)config->limits[NB_RES_FDS], broker->worker_channels,
               NB_WORKER_CHANNELS);
    return 0;
}
