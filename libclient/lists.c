// What the daemon has: lists by cursor, and its status. A daemon of another version may have longer
// or shorter rows: their beginnings agree.
#include "libclient/client.h"

#define REQUEST_MS 30000
#define PAGES_MAX  4096 // a list that never ends is no list

// Ends the strings of a row with a NUL: the daemon may not have.
struct text_field {
    size_t offset, size;
};
#define TEXT(type, field)                                                                          \
    {                                                                                              \
        offsetof(struct type, field), sizeof((struct type *)0)->field                              \
    }
static const struct {
    size_t row_size;
    struct text_field texts[9];
} rows[] = {
    [NB_LIST_MODELS] = {sizeof(struct nibble_model),
                        {TEXT(nibble_model, name), TEXT(nibble_model, architecture),
                         TEXT(nibble_model, type), TEXT(nibble_model, device),
                         TEXT(nibble_model, precision), TEXT(nibble_model, state),
                         TEXT(nibble_model, kv_type), TEXT(nibble_model, template_reason)}},
    [NB_LIST_DEVICES] = {sizeof(struct nibble_device),
                         {TEXT(nibble_device, name), TEXT(nibble_device, description),
                          TEXT(nibble_device, isa), TEXT(nibble_device, state),
                          TEXT(nibble_device, kind), TEXT(nibble_device, driver),
                          TEXT(nibble_device, uuid), TEXT(nibble_device, node),
                          TEXT(nibble_device, reason)}},
    [NB_LIST_HOLDERS] = {sizeof(struct nibble_holder),
                         {TEXT(nibble_holder, role), TEXT(nibble_holder, model)}},
    [NB_LIST_FINDINGS] = {sizeof(struct nibble_finding),
                          {TEXT(nibble_finding, check), TEXT(nibble_finding, verdict),
                           TEXT(nibble_finding, text)}},
    [NB_LIST_JOBS] = {sizeof(struct nibble_jobs_row),
                      {TEXT(nibble_jobs_row, kind), TEXT(nibble_jobs_row, state),
                       TEXT(nibble_jobs_row, name), TEXT(nibble_jobs_row, text)}},
};

static void take_row(enum nb_wire_list what, void *ret_row, const unsigned char *row, size_t size)
{
    unsigned char *out = ret_row;
    size_t ours = rows[what].row_size;
    memset(out, 0, ours);
    memcpy(out, row, size < ours ? size : ours);
    for (size_t i = 0; i < sizeof(rows->texts) / sizeof(*rows->texts) && rows[what].texts[i].size;
         i++)
        out[rows[what].texts[i].offset + rows[what].texts[i].size - 1] = 0;
}

static bool page_is_sound(const struct nb_wire_list_reply *page, size_t size, uint32_t cursor)
{
    return page->row_size > 0 && page->row_size <= NB_WIRE_MAX && page->n <= NB_WIRE_MAX &&
           size == sizeof(*page) + (size_t)page->n * page->row_size &&
           (page->next_cursor == 0 || (page->n > 0 && page->next_cursor != cursor));
}

int nb_list(nibble *c, enum nb_wire_list what, void *ret_rows, size_t max)
{
    struct nb_wire_list_request request = {.what = what};
    struct nb_packet packet;
    size_t n = 0;
    for (int pages = 0; pages < PAGES_MAX; pages++) {
        request.header.serial = 0;
        int size = nb_request(c, NB_WIRE_LIST, &request, NULL, &packet, REQUEST_MS);
        if (size < 0)
            return size;
        struct nb_wire_list_reply page;
        memcpy(&page, packet.bytes, sizeof(page));
        if (!page_is_sound(&page, (size_t)size, request.cursor))
            break;
        for (uint32_t i = 0; i < page.n; i++, n++)
            if (n < max)
                take_row(what, (char *)ret_rows + n * rows[what].row_size,
                         packet.bytes + sizeof(page) + (size_t)i * page.row_size, page.row_size);
        if (page.next_cursor == 0)
            return (int)n;
        request.cursor = page.next_cursor;
    }
    return nb_break(c, NIBBLE_E_PROTOCOL, "the daemon sent a list that cannot be right");
}

int nibble_models(nibble *c, struct nibble_model *ret_rows, size_t max)
{
    return nb_list(c, NB_LIST_MODELS, ret_rows, max);
}

int nibble_devices(nibble *c, struct nibble_device *ret_rows, size_t max)
{
    return nb_list(c, NB_LIST_DEVICES, ret_rows, max);
}

int nibble_holders(nibble *c, struct nibble_holder *ret_rows, size_t max)
{
    return nb_list(c, NB_LIST_HOLDERS, ret_rows, max);
}

int nibble_findings(nibble *c, struct nibble_finding *ret_rows, size_t max)
{
    return nb_list(c, NB_LIST_FINDINGS, ret_rows, max);
}

int nibble_jobs(nibble *c, struct nibble_jobs_row *ret_rows, size_t max)
{
    return nb_list(c, NB_LIST_JOBS, ret_rows, max);
}

int nibble_get_status(nibble *c, struct nibble_status *ret_status)
{
    struct nb_wire_empty request = {0};
    struct nb_packet packet;
    int rc = nb_request(c, NB_WIRE_STATUS, &request, NULL, &packet, REQUEST_MS);
    if (rc < 0)
        return rc;
    struct nb_wire_status_reply got;
    memcpy(&got, packet.bytes, sizeof(got));
    *ret_status = (struct nibble_status){
        .uptime_ms = got.uptime_ms,
        .weights_bytes = got.weights_bytes,
        .kv_bytes = got.kv_bytes,
        .kv_used_bytes = got.kv_used_bytes,
        .channel_bytes = got.channel_bytes,
        .models = got.models,
        .clients = got.clients,
        .sessions = got.sessions,
        .jobs = got.jobs,
        .worker_restarts = got.worker_restarts,
        .steps = got.steps,
        .mixed_steps = got.mixed_steps,
        .prefill_tokens = got.prefill_tokens,
        .decode_tokens = got.decode_tokens,
    };
    memcpy(ret_status->version, got.version, sizeof(got.version) - 1);
    memcpy(ret_status->numerics, got.numerics, sizeof(got.numerics) - 1);
    return 0;
}
