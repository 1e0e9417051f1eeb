// nibbled, the broker's process: arguments, settings, signals, and the loop from start to drained
// end.
#include "daemon/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "daemon/arena.h"
#include "daemon/cache.h"
#include "daemon/client.h"
#include "daemon/config.h"
#include "daemon/device.h"
#include "daemon/drop.h"
#include "daemon/hotplug.h"
#include "daemon/jobs.h"
#include "daemon/listen.h"
#include "daemon/load.h"
#include "daemon/log.h"
#include "daemon/model.h"
#include "daemon/probe.h"
#include "daemon/spawn.h"
#include "daemon/store.h"

#define DEFAULT_CONFIG  NB_SYSCONFDIR "/nibble/nibbled.conf"
#define DEFAULT_RUNTIME "/run/nibble"
#define DEFAULT_STATE   "/var/lib/nibble"

uint64_t nb_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint32_t nb_broker_next_id(struct nb_broker *broker)
{
    broker->last_id = broker->last_id % 0x7fffffffu + 1;
    return broker->last_id;
}

void nb_broker_tell_systemd(struct nb_broker *broker)
{
    unsigned models = 0;
    struct nb_model *model;
    TAILQ_FOREACH(model, &broker->models, of_broker)
        models++;
    sd_notifyf(0, "STATUS=%s%u models, %u clients", broker->stopping ? "Stopping: " : "", models,
               broker->n_clients);
}

void nb_broker_settled(struct nb_broker *broker)
{
    if (broker->stopping && TAILQ_EMPTY(&broker->workers))
        sd_event_exit(broker->loop, 0);
}

// A worker stuck in the kernel is not waited for.
static int on_drain_end(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_broker *broker = user;
    nb_log(LOG_WARNING, "some workers did not end: leaving without them");
    sd_event_exit(broker->loop, 0);
    return 0;
}

static void kill_workers(struct nb_broker *broker)
{
    struct nb_worker *worker;
    TAILQ_FOREACH(worker, &broker->workers, entry)
        nb_worker_kill(worker);
}

void nb_broker_stop(struct nb_broker *broker)
{
    struct nb_device *device;
    if (broker->stopping++) {
        kill_workers(broker); // asked twice: now
        return;
    }
    nb_log(LOG_INFO, "stopping: running jobs may finish");
    sd_notify(0, "STOPPING=1");
    nb_broker_tell_systemd(broker);
    nb_listen_stop(broker);
    nb_load_stop(broker);
    nb_jobs_stop(broker);
    nb_worker_kill(broker->probe);
    TAILQ_FOREACH(device, &broker->devices, entry)
        if (device->worker)
            nb_worker_drain(device->worker);
    int rc = sd_event_add_time_relative(broker->loop, &broker->drain_end, CLOCK_MONOTONIC,
                                        (broker->config.drain_ms + 5000) * 1000, 0, on_drain_end,
                                        broker);
    if (rc < 0)
        kill_workers(broker);
    nb_broker_settled(broker);
}

static int on_stop(sd_event_source *source, const struct signalfd_siginfo *info, void *user)
{
    nb_broker_stop(user);
    return 0;
}

static int load_config(struct nb_broker *broker)
{
    struct nb_config config;
    struct nb_refusal refusal;
    nb_config_init(&config);
    int rc = broker->config_path ? nb_config_load(&config, broker->config_path, &refusal) : 0;
    if (rc < 0) {
        nb_log(LOG_ERR, "%s", refusal.text);
        return rc;
    }
    broker->config = config;
    return nb_limits_fit(broker);
}

static int on_reload(sd_event_source *source, const struct signalfd_siginfo *info, void *user)
{
    struct nb_broker *broker = user;
    sd_notify(0, "RELOADING=1");
    if (load_config(broker) < 0)
        nb_log(LOG_ERR, "the old settings stay");
    else
        nb_log(LOG_INFO, "settings read again");
    nb_probe_later(broker);
    sd_notify(0, "READY=1");
    return 0;
}

static int add_signals(struct nb_broker *broker)
{
    static const struct {
        int number;
        sd_event_signal_handler_t run;
    } signals[] = {{SIGTERM, on_stop}, {SIGINT, on_stop}, {SIGHUP, on_reload}};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    int rc = 0;
    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
        sigaddset(&set, signals[i].number);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (size_t i = 0; rc >= 0 && i < sizeof(signals) / sizeof(*signals); i++)
        rc = sd_event_add_signal(broker->loop, NULL, signals[i].number, signals[i].run, broker);
    return rc;
}

static int make_dir(const char *path, mode_t mode)
{
    if (!mkdir(path, mode) || errno == EEXIST)
        return 0;
    int rc = -errno;
    nb_log(LOG_ERR, "cannot make %s: %s", path, strerror(-rc));
    return rc;
}

static int set_up(struct nb_broker *broker)
{
    broker->listeners[0].fd = broker->listeners[1].fd = broker->cache_dir = -1;
    broker->jobs_dir = -1;
    broker->started_us = nb_now_us();
    broker->ledger.limits = broker->limits;
    TAILQ_INIT(&broker->clients);
    TAILQ_INIT(&broker->models);
    TAILQ_INIT(&broker->devices);
    TAILQ_INIT(&broker->workers);
    TAILQ_INIT(&broker->loads);
    TAILQ_INIT(&broker->service_jobs);
    TAILQ_INIT(&broker->left);
    STAILQ_INIT(&broker->stored);
    int rc = load_config(broker);
    if (!rc)
        rc = make_dir(broker->runtime_dir, 0755);
    if (!rc)
        rc = make_dir(broker->state_dir, 0700);
    if (!rc)
        nb_cache_init(broker);
    if (!rc)
        rc = sd_event_new(&broker->loop);
    if (rc >= 0)
        rc = add_signals(broker);
    if (rc >= 0)
        rc = nb_drop_init(broker);
    if (rc >= 0)
        rc = nb_load_init(broker);
    if (rc >= 0)
        rc = nb_jobs_init(broker);
    if (rc >= 0)
        rc = sd_event_set_watchdog(broker->loop, 1);
    return rc < 0 ? rc : nb_listen(broker);
}

static void tear_down(struct nb_broker *broker)
{
    broker->stopping = 1;
    nb_listen_stop(broker);
    while (!TAILQ_EMPTY(&broker->clients))
        nb_client_destroy(TAILQ_FIRST(&broker->clients));
    nb_load_stop(broker);
    nb_jobs_finish(broker);
    nb_store_restore(broker);
    while (!TAILQ_EMPTY(&broker->models))
        nb_model_destroy(TAILQ_FIRST(&broker->models));
    while (!TAILQ_EMPTY(&broker->devices))
        nb_device_destroy(TAILQ_FIRST(&broker->devices));
    while (!TAILQ_EMPTY(&broker->workers))
        nb_worker_free(TAILQ_FIRST(&broker->workers));
    nb_arenas_finish(broker);
    sd_event_source_disable_unref(broker->load_turn);
    sd_event_source_disable_unref(broker->drain_end);
    sd_event_source_disable_unref(broker->probe_again);
    nb_hotplug_stop(broker);
    sd_event_unref(broker->loop);
    nb_cache_finish(broker);
}

static const char usage[] =
    "Usage: nibbled [--config FILE] [--runtime-dir DIR] [--state-dir DIR]\n"
    "The service that holds language models once for all processes. Runs in the foreground.\n\n"
    "  --config FILE      settings; default " DEFAULT_CONFIG " where it exists\n"
    "  --runtime-dir DIR  where nibble.sock and admin.sock are; default " DEFAULT_RUNTIME "\n"
    "  --state-dir DIR    default " DEFAULT_STATE "\n"
    "  --version, --help\n"
    "With both directories given no privileges are needed. SIGTERM ends it when running jobs are\n"
    "done, SIGHUP reads the settings again.\n";

// Returns -1 to go on, else the exit status.
static int parse_args(struct nb_broker *broker, int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"runtime-dir", required_argument, NULL, 'r'},
                                            {"state-dir", required_argument, NULL, 's'},
                                            {"version", no_argument, NULL, 'V'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int c;
    broker->runtime_dir = DEFAULT_RUNTIME;
    broker->state_dir = DEFAULT_STATE;
    broker->config_path = access(DEFAULT_CONFIG, F_OK) ? NULL : DEFAULT_CONFIG;
    while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
        switch (c) {
        case 'c':
            broker->config_path = optarg;
            break;
        case 'r':
            broker->runtime_dir = optarg;
            break;
        case 's':
            broker->state_dir = optarg;
            break;
        case 'V':
            puts("nibbled " NB_VERSION);
            return 0;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return 2;
        }
    if (optind < argc) {
        fprintf(stderr, "nibbled: unexpected argument \"%s\"\n", argv[optind]);
        return 2;
    }
    return -1;
}

// Whoever starts the daemon may have closed them: no descriptor of ours takes their place.
static void open_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            _exit(1); // nowhere to say it
}

int main(int argc, char **argv)
{
    static struct nb_broker broker;
    open_streams();
    int status = parse_args(&broker, argc, argv);
    if (status >= 0)
        return status;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGIO, SIG_IGN);   // of a lease (arena.c)
    signal(SIGXFSZ, SIG_IGN); // a file that may not grow is an error with a name
    int rc = set_up(&broker);
    if (rc >= 0) {
        nb_hotplug_start(&broker);
        nb_probe(&broker);
        rc = sd_event_loop(broker.loop);
    }
    tear_down(&broker);
    return rc < 0 ? 1 : 0;
}
