// STATUS and LIST: what the broker knows of itself, and what the workers' pages show. Changes
// nothing.
#include "daemon/listing.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/channel.h"
#include "daemon/client.h"
#include "daemon/device.h"
#include "daemon/image.h"
#include "daemon/jobs.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/model.h"
#include "daemon/page.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/spawn.h"
#include "daemon/split.h"
#include "libclient/ring.h"
#include "libclient/wire.h"

NB_HANDLER(nb_on_status)
{
    const struct nb_wire_empty *request = packet;
    struct nb_broker *broker = client->broker;
    struct nb_wire_status_reply s = {
        .header = {NB_WIRE_STATUS | NB_WIRE_REPLY, sizeof(s), request->header.serial, 0},
        .version = NB_VERSION,
        .numerics = NB_NUMERICS,
        .uptime_ms = (nb_now_us() - broker->started_us) / 1000,
        .weights_bytes = nb_images_bytes(broker),
        .channel_bytes = nb_ledger_total(&broker->ledger, NB_RES_BYTES),
        .worker_restarts = broker->restarts,
    };
    struct nb_device *device;
    struct nb_model *model;
    struct nb_channel *channel;
    struct nb_counts counts;
    struct nb_page_view view;
    const struct nb_client *other;
    TAILQ_FOREACH(other, &broker->clients, entry)
        s.clients += other->greeted != 0;
    TAILQ_FOREACH(device, &broker->devices, entry) {
        nb_page_counts(device, &counts);
        s.steps += counts.steps;
        s.mixed_steps += counts.mixed_steps;
        s.prefill_tokens += counts.prefill_tokens;
        s.decode_tokens += counts.decode_tokens;
    }
    TAILQ_FOREACH(model, &broker->models, of_broker) {
        nb_page_model_view(model, &view);
        s.models++;
        s.kv_bytes += model->info.kv_bytes;
        s.kv_used_bytes += view.kv_used_bytes;
        TAILQ_FOREACH(channel, &model->channels, of_model) {
            nb_page_channel_view(channel, &view);
            s.sessions += view.sessions;
            s.jobs += view.jobs;
        }
    }
    nb_peer_send(client->peer, &s, NULL, 0);
    return 0;
}

// A page of a listing. Every row has an id that only grows, and rows come in its order: the cursor
// is the least id to come, so rows that come and go meanwhile make others neither vanish nor come
// twice.
struct page {
    const struct nb_client *client; // who asks
    struct nb_wire_list_reply head;
    char rows[NB_WIRE_MAX - sizeof(struct nb_wire_list_reply)];
    uint32_t cursor;
};

static void add_row(struct page *page, uint32_t id, const void *row)
{
    struct nb_wire_list_reply *head = &page->head;
    head->total++;
    if (id < page->cursor || head->next_cursor)
        return;
    if ((head->n + 1) * head->row_size > sizeof(page->rows)) {
        head->next_cursor = id;
        return;
    }
    memcpy(page->rows + head->n++ * head->row_size, row, head->row_size);
}

static void list_models(struct nb_broker *broker, struct page *page)
{
    struct nb_model *model;
    struct nb_channel *channel;
    struct nb_page_view view;
    TAILQ_FOREACH(model, &broker->models, of_broker) {
        struct nibble_model row = model->info;
        TAILQ_FOREACH(channel, &model->channels, of_model) {
            nb_page_channel_view(channel, &view);
            row.sessions += view.sessions;
        }
        add_row(page, model->id, &row);
    }
}

static void list_devices(struct nb_broker *broker, struct page *page)
{
    struct nb_device *device;
    struct nb_model *model;
    struct nb_worker *worker;
    TAILQ_FOREACH(device, &broker->devices, entry) {
        struct nibble_device row = device->info;
        row.used_bytes = row.models = 0;
        TAILQ_FOREACH(model, &device->models, of_device) {
            row.models++;
            row.used_bytes += model->info.packed_bytes + model->info.kv_bytes;
        }
        TAILQ_FOREACH(worker, &broker->workers, entry)
            if (worker->device == device->id)
                row.used_bytes += worker->held_bytes;
        if (row.models || !nb_device_is_split(device))
            add_row(page, device->id, &row);
    }
}

static void hold(struct nibble_holder *row, const struct nb_model *model, unsigned nth)
{
    if (nth == 1)
        snprintf(row->model, sizeof(row->model), "%s", model->info.name);
    else
        snprintf(row->model, sizeof(row->model), "%u models", nth);
}

static struct nb_device *device_of(const struct nb_worker *worker)
{
    struct nb_device *device;
    TAILQ_FOREACH(device, &worker->broker->devices, entry)
        if (device->worker == worker)
            return device;
    return NULL;
}

static struct nibble_holder worker_row(const struct nb_worker *worker)
{
    struct nibble_holder row = {.role = "worker", .pid = (uint32_t)worker->pid};
    struct nb_device *device = device_of(worker);
    struct nb_model *model;
    struct nb_channel *channel;
    struct nb_page_view view;
    struct nb_counts counts;
    unsigned n = 0;
    row.uid = (uint32_t)getuid();
    if (!device)
        return row; // a loader, or one that finishes its work
    nb_page_counts(device, &counts);
    row.tokens = counts.prefill_tokens + counts.decode_tokens;
    TAILQ_FOREACH(model, &device->models, of_device) {
        hold(&row, model, ++n);
        row.shared_bytes += model->info.packed_bytes;
        row.private_bytes += model->info.kv_bytes;
        TAILQ_FOREACH(channel, &model->channels, of_model) {
            nb_page_channel_view(channel, &view);
            row.sessions += view.sessions;
            row.jobs += view.jobs;
        }
    }
    return row;
}

static struct nibble_holder client_row(const struct nb_client *client)
{
    struct nibble_holder row = {.role = "client", .pid = (uint32_t)client->pid, .uid = client->uid};
    struct nb_channel *channel;
    struct nb_page_view view;
    unsigned n = 0;
    TAILQ_FOREACH(channel, &client->channels, of_client) {
        nb_page_channel_view(channel, &view);
        hold(&row, channel->model, ++n);
        row.sessions += view.sessions;
        row.jobs += view.jobs;
        row.tokens += view.tokens;
        row.shared_bytes += NB_CHANNEL_BYTES(channel->arena_bytes);
        row.private_bytes += NB_CHANNEL_BYTES(channel->arena_bytes);
    }
    return row;
}

// The broker, then the workers, then the clients. Workers and clients share one count of ids but
// come in two lists: clients' ids are moved above all workers'.
static void list_holders(struct nb_broker *broker, struct page *page)
{
    struct nibble_holder row = {.role = "broker", .pid = (uint32_t)getpid()};
    struct nb_worker *worker;
    struct nb_client *client;
    row.uid = (uint32_t)getuid();
    add_row(page, 0, &row);
    TAILQ_FOREACH(worker, &broker->workers, entry) {
        row = worker_row(worker);
        add_row(page, worker->id, &row);
    }
    TAILQ_FOREACH(client, &broker->clients, entry) {
        row = client_row(client);
        if (client->greeted)
            add_row(page, client->id | 0x80000000u, &row);
    }
}

static void list_findings(struct nb_broker *broker, struct page *page)
{
    for (uint32_t i = 0; i < broker->n_findings; i++)
        add_row(page, i + 1, &broker->findings[i]);
}

// Those that the client may know of. Its numbers are a job's own, and grow as ids do.
static void list_jobs(struct nb_broker *broker, struct page *page)
{
    const struct nb_service_job *job;
    TAILQ_FOREACH(job, &broker->service_jobs, entry) {
        struct nibble_jobs_row row = job->row;
        snprintf(row.state, sizeof(row.state), "%s", nb_jobs_states[job->state]);
        if (nb_jobs_shown_to(job, page->client))
            add_row(page, (uint32_t)job->row.id, &row);
    }
}

static const struct {
    size_t row_size;
    void (*run)(struct nb_broker *broker, struct page *page);
} lists[] = {
    [NB_LIST_MODELS] = {sizeof(struct nibble_model), list_models},
    [NB_LIST_DEVICES] = {sizeof(struct nibble_device), list_devices},
    [NB_LIST_HOLDERS] = {sizeof(struct nibble_holder), list_holders},
    [NB_LIST_FINDINGS] = {sizeof(struct nibble_finding), list_findings},
    [NB_LIST_JOBS] = {sizeof(struct nibble_jobs_row), list_jobs},
};

NB_HANDLER(nb_on_list)
{
    const struct nb_wire_list_request *request = packet;
    if (request->what >= sizeof(lists) / sizeof(*lists))
        return nb_refuse(refusal, -EINVAL, "there is no list %u", request->what);
    struct page page = {.client = client, .cursor = request->cursor};
    page.head.header = (struct nb_wire_header){.type = NB_WIRE_LIST | NB_WIRE_REPLY,
                                               .serial = request->header.serial};
    page.head.row_size = (uint32_t)lists[request->what].row_size;
    lists[request->what].run(client->broker, &page);
    page.head.header.size = (uint32_t)sizeof(page.head) + page.head.n * page.head.row_size;
    nb_peer_send(client->peer, &page.head, NULL, 0);
    return 0;
}
