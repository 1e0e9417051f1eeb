// Waiting, in one place: for rings, which are looked at, and for sockets, which are slept on. No
// completion is ever missed: a channel is told that we sleep before its ring is looked at for the
// last time (ring.h).
#include "libclient/client.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS      50000
#define NS_A_MS      1000000
#define BUSY_ROUNDS  32 // so often at most without a look at the sockets
#define EPOLL_EVENTS 16

int64_t nb_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t nb_deadline(int timeout_ms)
{
    return timeout_ms < 0 ? INT64_MAX : nb_now_ns() + (int64_t)timeout_ms * NS_A_MS;
}

int nb_left_ms(int64_t deadline)
{
    if (deadline == INT64_MAX)
        return -1;
    int64_t left = deadline - nb_now_ns();
    int64_t ms = (left + NS_A_MS - 1) / NS_A_MS;
    return left <= 0 ? 0 : ms > INT_MAX ? INT_MAX : (int)ms;
}

static int drain_all(nibble *c)
{
    int handled = 0;
    NB_EACH(link, &c->channels)
        handled += nb_channel_drain(NB_OF(link, struct nb_channel, link));
    return handled;
}

static bool any_channel(nibble *c, bool (*is)(struct nb_channel *))
{
    NB_EACH(link, &c->channels) {
        if (is(NB_OF(link, struct nb_channel, link)))
            return true;
    }
    return false;
}

static bool awaits(struct nb_channel *channel)
{
    return nb_channel_busy(channel);
}

// Most answers of a running worker come within microseconds; a sleep would cost both sides a system
// call.
static bool spin(nibble *c, int64_t deadline)
{
    if (!any_channel(c, awaits))
        return false;
    int64_t end = nb_now_ns() + SPIN_NS;
    if (end > deadline)
        end = deadline;
    do
        if (any_channel(c, nb_channel_pending))
            return true;
    while (nb_now_ns() < end);
    return false;
}

// Tells every channel that we sleep. False: one has something already.
static bool may_sleep(nibble *c)
{
    bool may = true;
    NB_EACH(link, &c->channels)
        may &= nb_channel_may_sleep(NB_OF(link, struct nb_channel, link));
    return may;
}

void nb_leave(nibble *c)
{
    bool work = !may_sleep(c) || !nb_list_empty(&c->ready);
    if (work && !c->nudged)
        c->nudged = write(c->nudge, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t);
}

static void take_nudge(nibble *c)
{
    uint64_t count;
    if (read(c->nudge, &count, sizeof(count)) == sizeof(count))
        c->nudged = false;
}

// A worker's end means nothing by itself: the daemon says what comes of it. But the socket must
// not wake us any more.
static void take_wake(nibble *c, struct nb_channel *channel)
{
    if (channel->lost || channel->hung_up || nb_wake_drain(channel->sock) == 0)
        return;
    channel->hung_up = true;
    epoll_ctl(c->epoll, EPOLL_CTL_DEL, channel->sock, NULL);
}

static void sleep_once(nibble *c, int timeout_ms)
{
    struct epoll_event events[EPOLL_EVENTS];
    int n = epoll_wait(c->epoll, events, EPOLL_EVENTS, timeout_ms);
    if (n < 0 && errno != EINTR)
        nb_break(c, -errno, "cannot wait for the daemon");
    bool control = false;
    for (int i = 0; i < n; i++) {
        if (events[i].data.ptr == c)
            control = true;
        else if (events[i].data.ptr == &c->nudge)
            take_nudge(c);
        else
            take_wake(c, events[i].data.ptr);
    }
    if (control)
        nb_control(c); // last: it may replace channels' sockets
}

// Looks at everything once; sleeps until the deadline if there is nothing.
static void look(nibble *c, int64_t deadline)
{
    int handled = drain_all(c);
    if (handled && ++c->busy_rounds % BUSY_ROUNDS != 0)
        return;
    bool sleepy = !handled && deadline > nb_now_ns() && !spin(c, deadline) && may_sleep(c);
    sleep_once(c, sleepy ? nb_left_ms(deadline) : 0);
    drain_all(c);
}

int nb_pump(nibble *c, bool (*done)(const void *), const void *what, int timeout_ms)
{
    int64_t deadline = nb_deadline(timeout_ms);
    int result;
    for (bool last = false;;) {
        nb_deliver(c);
        result = done(what) ? 1 : c->broken;
        if (result != 0 || last)
            break;
        look(c, deadline);
        last = deadline <= nb_now_ns();
    }
    nb_leave(c);
    return result;
}

int nibble_get_fd(const nibble *c)
{
    return c->epoll;
}

struct delivery {
    const nibble *connection;
    unsigned before;
};

static bool delivered(const void *what)
{
    const struct delivery *delivery = what;
    return delivery->connection->delivered != delivery->before;
}

int nibble_dispatch(nibble *c, int timeout_ms)
{
    struct delivery delivery = {c, c->delivered};
    int rc = nb_pump(c, delivered, &delivery, timeout_ms);
    return rc < 0 ? rc : (int)(c->delivered - delivery.before);
}
