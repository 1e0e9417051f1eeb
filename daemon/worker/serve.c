// Mode `serve`: one thread that listens to the broker and to clients, takes submissions from the
// rings and steps the models, one step of each in turn, as long as there is work. It never waits
// for a client.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/worker/channel.h"
#include "daemon/worker/matrices.h"
#include "daemon/worker/submissions.h"
#include "daemon/worker/sandbox.h"
#include "daemon/worker/serve.h"
#include "daemon/worker/text.h"
#include "daemon/worker/worker.h"
#include "machine/bounds.h"
#include "tensor/fail.h"

#define SPIN_NS    50000u // looking at rings before sleep
#define TAKE_MAX   16u    // submissions of one channel between two steps
#define EVENTS_MAX 64
// Models are prepared further after QUIET_NS without anything to do, because whoever loads a model
// often asks it something at once; and between steps after BUSY_SHARE times what a piece took.
#define QUIET_NS    250000000u
#define BUSY_SHARE  8u
#define LINK_EVENT  UINT32_MAX
#define TEXT_EVENT  (UINT32_MAX - 1)
#define CLOSE_EVENT (UINT32_MAX - 2)
#define DRIVER_FDS  4096 // as the sandbox's limit

static int watch(const struct nb_serve *s, int fd, uint32_t events, uint32_t name)
{
    struct epoll_event event = {.events = events, .data.u32 = name};
    return epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

// --- channels

static struct nb_channel **channel_slot(struct nb_serve *s, uint64_t key)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i] ? s->channels[i]->key == key : !key)
            return &s->channels[i];
    return NULL;
}

struct nb_channel *nb_serve_channel(struct nb_serve *s, uint64_t key)
{
    struct nb_channel **slot = key ? channel_slot(s, key) : NULL;
    return slot ? *slot : NULL;
}

struct slow_socket {
    struct nb_closing closing;
    uint32_t uid;
};

static void tell_closing(uint32_t type, uint32_t uid)
{
    struct nb_link_closing m = {.uid = uid};
    nb_link_send(&m, type, sizeof(m));
}

// A client can put descriptors into it where the kernel cannot refuse them, and the close of the
// last of them may block: not here.
static void close_socket(struct nb_serve *s, int sock, uint32_t uid)
{
    if (!nb_wake_end(sock)) {
        close(sock);
        return;
    }
    struct slow_socket *slow = calloc(1, sizeof(*slow));
    if (!slow)
        return; // stays open: better than to wait
    slow->uid = uid;
    tell_closing(NB_LINK_CLOSING, uid);
    nb_closer_add(&s->closer, &slow->closing, sock);
}

static void on_closed(struct nb_serve *s)
{
    struct nb_closing *closing;
    while ((closing = nb_closer_next(&s->closer))) {
        struct slow_socket *slow = (struct slow_socket *)closing; // its first member
        tell_closing(NB_LINK_CLOSED, slow->uid);
        free(slow);
    }
}

static void remove_channel(struct nb_serve *s, struct nb_channel **slot)
{
    struct nb_page_channel *page = (*slot)->page;
    int sock = (*slot)->sock;
    uint32_t uid = (*slot)->uid;
    nb_text_forget((*slot)->key);
    epoll_ctl(s->epoll, EPOLL_CTL_DEL, sock, NULL); // a thread may hold it for long
    nb_channel_close(*slot);
    close_socket(s, sock, uid);
    *slot = NULL;
    atomic_store(&page->channel, 0);
    atomic_store(&page->tokens, 0);
}

static void tell_gone(uint64_t key)
{
    struct nb_link_ref gone = {.channel = key};
    nb_link_send(&gone, NB_LINK_CHANNEL_GONE, sizeof(gone));
}

static int open_channel(struct nb_serve *s, const struct nb_link_channel_add *add, int *fds)
{
    struct nb_worker_model *m = nb_worker_model_find(s, add->model);
    struct nb_channel **slot = channel_slot(s, 0);
    if (!m)
        return -ENOENT;
    if (!slot || channel_slot(s, add->channel))
        return -EINVAL;
    struct nb_channel *c;
    int rc = nb_channel_open(add, fds[0], fds[1], &c);
    if (rc < 0)
        return rc;
    uint32_t i = (uint32_t)(slot - s->channels);
    c->serve = s;
    c->model = m;
    c->page = &s->page->channels[i];
    *slot = c;
    fds[0] = fds[1] = -1;
    atomic_store(&c->page->channel, c->key);
    rc = watch(s, c->sock, EPOLLIN | EPOLLRDHUP, i);
    if (rc < 0)
        remove_channel(s, slot);
    return rc;
}

// Answers one client's submissions and closes its channel when it is no longer fit to be one. True:
// something was done.
static bool look_at(struct nb_serve *s, struct nb_channel **slot)
{
    struct nb_channel *c = *slot;
    struct nb_submission submission;
    bool did = c->posted;
    nb_channel_flush(c);
    for (uint32_t i = 0; i < TAKE_MAX && nb_channel_take(c, &submission); i++) {
        nb_submission_run(c, &submission);
        did = true;
    }
    nb_channel_flush(c);
    if (!c->broken)
        return did;
    uint64_t key = c->key;
    remove_channel(s, slot);
    tell_gone(key);
    return true;
}

static bool look_at_all(struct nb_serve *s)
{
    bool did = false;
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i])
            did |= look_at(s, &s->channels[i]);
    return did;
}

// --- the link

struct packet {
    alignas(8) char bytes[NB_WIRE_MAX];
    int fds[NB_WIRE_FDS_MAX]; // closed afterwards, unless a handler has set them to -1
    size_t n_fds;
};

static void on_model_add(struct nb_serve *s, struct packet *p)
{
    struct nb_link_model_add *add = (void *)p->bytes;
    add->name[sizeof(add->name) - 1] = 0;
    add->kv_most_by[sizeof(add->kv_most_by) - 1] = 0;
    add->params.precision[sizeof(add->params.precision) - 1] = 0;
    add->params.kv_type[sizeof(add->params.kv_type) - 1] = 0;
    nb_worker_model_add(s, add, p->fds[0]);
    s->worked = nb_now_ns();
    s->prepare_at = s->worked + BUSY_SHARE * QUIET_NS;
}

static void on_model_remove(struct nb_serve *s, struct packet *p)
{
    const struct nb_link_ref *ref = (const void *)p->bytes;
    struct nb_worker_model *m = nb_worker_model_find(s, ref->model);
    for (uint32_t i = 0; m && i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i] && s->channels[i]->model == m)
            remove_channel(s, &s->channels[i]);
    if (m)
        nb_text_settle(nb_model_tokenizer(m->model));
    nb_worker_model_remove(s, ref->model);
}

static void on_channel_add(struct nb_serve *s, struct packet *p)
{
    const struct nb_link_channel_add *add = (const void *)p->bytes;
    int rc = open_channel(s, add, p->fds);
    if (rc == 0)
        return;
    nb_log("a channel was not accepted: %s", strerror(-rc));
    tell_gone(add->channel);
}

static void on_channel_remove(struct nb_serve *s, struct packet *p)
{
    const struct nb_link_ref *ref = (const void *)p->bytes;
    struct nb_channel **slot = ref->channel ? channel_slot(s, ref->channel) : NULL;
    if (slot)
        remove_channel(s, slot);
    struct nb_link_ref dropped = {.channel = ref->channel};
    nb_link_send(&dropped, NB_LINK_CHANNEL_DROPPED, sizeof(dropped));
}

static void on_memory_add(struct nb_serve *s, struct packet *p)
{
    struct nb_link_memory *add = (void *)p->bytes;
    struct nb_channel *c = nb_serve_channel(s, add->channel);
    if (!c)
        return;
    int rc = nb_region_add(c, add, p->fds[0]);
    if (c->awaited)
        c->awaited--;
    add->header.status = rc;
    nb_link_send(add, NB_LINK_MEMORY_READY, sizeof(*add));
}

static void on_memory_remove(struct nb_serve *s, struct packet *p)
{
    const struct nb_link_memory *gone = (const void *)p->bytes;
    struct nb_channel *c = nb_serve_channel(s, gone->channel);
    if (c)
        nb_matrices_forget(c, gone->region);
    struct nb_link_memory dropped = {.channel = gone->channel, .region = gone->region};
    nb_link_send(&dropped, NB_LINK_MEMORY_DROPPED, sizeof(dropped));
}

static void beat(void *user)
{
    struct nb_page *page = user;
    atomic_fetch_add_explicit(&page->beat, 1, memory_order_relaxed);
}

static void on_ping(struct nb_serve *s, struct packet *p)
{
    beat(s->page);
}

static void on_drain(struct nb_serve *s, struct packet *p)
{
    s->draining = true;
}

static const struct {
    uint32_t type, size, fds;
    void (*run)(struct nb_serve *s, struct packet *p);
} link_messages[] = {
    {NB_LINK_MODEL_ADD, sizeof(struct nb_link_model_add), 1, on_model_add},
    {NB_LINK_MODEL_REMOVE, sizeof(struct nb_link_ref), 0, on_model_remove},
    {NB_LINK_CHANNEL_ADD, sizeof(struct nb_link_channel_add), 2, on_channel_add},
    {NB_LINK_CHANNEL_REMOVE, sizeof(struct nb_link_ref), 0, on_channel_remove},
    {NB_LINK_DRAIN, sizeof(struct nb_link_ref), 0, on_drain},
    {NB_LINK_MEMORY_ADD, sizeof(struct nb_link_memory), 1, on_memory_add},
    {NB_LINK_MEMORY_REMOVE, sizeof(struct nb_link_memory), 0, on_memory_remove},
    {NB_LINK_PING, sizeof(struct nb_wire_header), 0, on_ping},
};

static bool run_packet(struct nb_serve *s, struct packet *p)
{
    const struct nb_wire_header *h = (const void *)p->bytes;
    for (size_t i = 0; i < sizeof(link_messages) / sizeof(link_messages[0]); i++) {
        if (link_messages[i].type != h->type || link_messages[i].size != h->size ||
            link_messages[i].fds != p->n_fds)
            continue;
        link_messages[i].run(s, p);
        return true;
    }
    return false;
}

// The broker's end of the link being gone ends the worker: what clients asked for, they ask again.
static void listen_to_broker(struct nb_serve *s)
{
    struct packet p;
    int rc;
    while (!s->ended && (rc = nb_wire_recv(NB_LINK_FD, p.bytes, p.fds, &p.n_fds)) != -EAGAIN) {
        if (rc <= 0) {
            s->ended = true;
            return;
        }
        if (!run_packet(s, &p)) {
            nb_log("a packet on the link that this version does not know: is nibbled of another?");
            s->ended = true;
        }
        for (size_t i = 0; i < p.n_fds; i++)
            if (p.fds[i] >= 0)
                close(p.fds[i]);
    }
}

// --- the loop

static void listen_to(struct nb_serve *s, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(s->epoll, events, EVENTS_MAX, timeout_ms);
    for (int i = 0; i < n; i++) {
        uint32_t which = events[i].data.u32;
        if (which == LINK_EVENT)
            listen_to_broker(s);
        else if (which == TEXT_EVENT)
            nb_text_deliver(s);
        else if (which == CLOSE_EVENT)
            on_closed(s);
        else if (s->channels[which] && nb_wake_drain(s->channels[which]->sock) < 0)
            s->channels[which]->broken = true;
    }
}

void nb_serve_fail(struct nb_serve *s, int error)
{
    const struct nb_device_ops *ops = s->device->ops;
    const char *why = ops->fault ? ops->fault(s->device) : NULL;
    nb_link_fault(error, why ? why : strerror(-error));
    _exit(NB_EXIT_FAULT);
}

void nb_serve_check(struct nb_serve *s, int error)
{
    bool of_a_device = error == -ENODEV || error == -ETIMEDOUT || error == -EIO;
    if (of_a_device && s->device->ops->fault && s->device->ops->fault(s->device))
        nb_serve_fail(s, error);
}

// One slice of the next channel's matrix jobs. True: there was one.
static bool operate(struct nb_serve *s)
{
    int rc = nb_matrices_run(s);
    if (rc < 0)
        nb_serve_fail(s, rc);
    return rc > 0;
}

// One step of the next model that has work. True: there was one.
static bool step(struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_MODELS; i++) {
        struct nb_worker_model *m = &s->models[s->next_model];
        s->next_model = (s->next_model + 1) % NB_WORKER_MODELS;
        int rc = m->id && !m->adapter ? nb_worker_model_step(s, m) : 0;
        if (rc < 0)
            nb_serve_fail(s, rc);
        if (rc > 0)
            return true;
    }
    return false;
}

// The model that has something left to prepare, or NULL.
static struct nb_worker_model *unprepared(struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_MODELS; i++)
        if (s->models[i].id && !nb_model_is_prepared(s->models[i].model))
            return &s->models[i];
    return NULL;
}

static void prepare(struct nb_serve *s, struct nb_worker_model *m)
{
    uint64_t begin = nb_now_ns();
    int rc = nb_worker_model_prepare(s, m);
    if (rc < 0)
        nb_serve_fail(s, rc);
    uint64_t end = nb_now_ns();
    s->prepare_at = end + BUSY_SHARE * (end - begin);
}

// Every client is told that the worker sleeps, then its ring is looked at once more.
static bool may_sleep(struct nb_serve *s)
{
    bool quiet = true;
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i])
            quiet &= nb_channel_doze(s->channels[i]);
    return quiet;
}

static void wake(struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i])
            nb_channel_wake(s->channels[i]);
}

static bool drained(const struct nb_serve *s)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i] && (s->channels[i]->n_jobs || s->channels[i]->backlog_n))
            return false;
    return s->draining;
}

// Until something comes, or it is time to go on with a model that is not prepared.
static void rest(struct nb_serve *s, bool has_unprepared, uint64_t now)
{
    int timeout_ms = has_unprepared ? (int)((s->worked + QUIET_NS - now) / 1000000) + 1 : -1;
    listen_to(s, may_sleep(s) ? timeout_ms : 0);
    wake(s);
}

static void loop(struct nb_serve *s)
{
    uint64_t quiet_since = nb_now_ns();
    while (!s->ended && !drained(s)) {
        bool did = look_at_all(s);
        did |= step(s);
        did |= operate(s);
        uint64_t now = nb_now_ns();
        if (did)
            s->worked = quiet_since = now;
        struct nb_worker_model *m = unprepared(s);
        if (m && (did ? now >= s->prepare_at : now - s->worked >= QUIET_NS)) {
            prepare(s, m);
        } else if (!did && now - quiet_since >= SPIN_NS) {
            rest(s, m, now);
            quiet_since = nb_now_ns();
            continue;
        }
        listen_to(s, 0);
    }
}

static int map_page(struct nb_page **ret)
{
    struct stat st;
    if (fstat(NB_PAGE_FD, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size < sizeof(struct nb_page))
        return -EINVAL;
    void *p = mmap(NULL, sizeof(struct nb_page), PROT_READ | PROT_WRITE, MAP_SHARED, NB_PAGE_FD, 0);
    if (p == MAP_FAILED)
        return -errno;
    close(NB_PAGE_FD);
    *ret = p;
    return 0;
}

// The broker tells those who wait for the device why it cannot be had.
static void tell_failure(int status, const char *why)
{
    struct nb_link_device device = {.header.status = nb_link_status(status)};
    snprintf(device.device.reason, sizeof(device.device.reason), "%.191s", why);
    nb_link_send(&device, NB_LINK_DEVICE, sizeof(device));
}

// Each object of a driver's memory may be a descriptor.
static void name_low_limit(enum nb_device_kind kind)
{
    struct rlimit files;
    if (kind == NB_DEVICE_CPU || getrlimit(RLIMIT_NOFILE, &files) < 0 ||
        files.rlim_cur >= DRIVER_FDS)
        return;
    nb_log("the hard limit of descriptors is %llu, and a driver may need %d: raise it "
           "(LimitNOFILE=, ulimit -Hn)",
           (unsigned long long)files.rlim_cur, DRIVER_FDS);
}

static int open_device(struct nb_serve *s, const struct nb_cpu_allowed *allowed)
{
    struct nb_device_options options = {.allowed = allowed, .warm = true};
    void *cache = NULL;
    struct nb_error why = {""};
    int rc = nb_cache_read(&cache, &options.cache_bytes);
    if (rc < 0)
        nb_log("the device cache cannot be read (%s): the device starts without it", strerror(-rc));
    options.cache = cache;
    rc = nb_device_create(s->device_name, &options, &s->device, &why);
    free(cache);
    if (rc < 0) {
        nb_log("%s", why.text);
        tell_failure(rc, why.text);
    }
    return rc;
}

// `ret_told`: the failure was told as the device's.
static int start(struct nb_serve *s, struct nb_device_info *ret_info, bool *ret_told)
{
    struct nb_cpu_allowed allowed;
    tzset(); // templates tell the date: the time zone's file cannot be opened later
    int rc = map_page(&s->page);
    if (rc == 0)
        rc = nb_cpu_allowed(&allowed); // while its files can be read
    if (rc == 0 && strcmp(s->device_name, "cpu"))
        nb_worker_limit_drivers();
    if (rc == 0)
        *ret_told = (rc = open_device(s, &allowed)) < 0;
    if (rc < 0)
        return rc;
    s->device->ops->info(s->device, ret_info);
    int text_fd;
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll < 0)
        return -errno;
    rc = nb_closer_init(&s->closer);
    if (rc == 0)
        rc = nb_text_start(&text_fd);
    if (rc == 0)
        rc = watch(s, NB_LINK_FD, EPOLLIN, LINK_EVENT);
    if (rc == 0)
        rc = watch(s, text_fd, EPOLLIN, TEXT_EVENT);
    if (rc == 0)
        rc = watch(s, s->closer.event, EPOLLIN, CLOSE_EVENT);
    if (rc == 0)
        rc = nb_sandbox_enter(ret_info->kind == NB_DEVICE_CPU ? NB_SANDBOX_SERVE
                                                              : NB_SANDBOX_SERVE_VULKAN);
    if (rc == 0)
        name_low_limit(ret_info->kind);
    return rc;
}

static void stop(struct nb_serve *s)
{
    nb_text_stop();
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (s->channels[i])
            remove_channel(s, &s->channels[i]);
    for (uint32_t i = 0; i < NB_WORKER_MODELS; i++)
        nb_worker_model_remove(s, s->models[i].id);
    s->device->ops->destroy(s->device);
}

int nb_serve_run(char **args)
{
    static struct nb_serve s;
    s.device_name = args[0];
    signal(SIGTERM, SIG_IGN); // the service's stop goes through the broker: DRAIN
    struct nb_device_info info;
    bool told = false;
    int rc = start(&s, &info, &told);
    if (rc < 0) {
        char reason[NB_LIMIT_TEXT], why[NB_FAULT_TEXT];
        snprintf(why, sizeof(why), "serving on %.32s: %s", s.device_name,
                 nb_limit_reason(rc, reason));
        if (told)
            nb_log("%s", why);
        else
            nb_link_fault(rc, why);
        return EXIT_FAILURE;
    }
    struct nb_link_device device;
    nb_worker_device_describe(&info, &device);
    nb_link_send(&device, NB_LINK_DEVICE, sizeof(device));
    s.device->on_beat = beat;
    s.device->user = s.page;
    loop(&s);
    stop(&s);
    return EXIT_SUCCESS;
}
