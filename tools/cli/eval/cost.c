// Times as the service reports them, of requests that run alone; medians of the runs. The first run
// is not counted: it warms caches up and may compile shaders.
#include "tools/cli/eval/cost.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "tools/report/energy.h"

#define PREPARED_MS 200 // between two questions, so that the device is idle
#define BATCH       32

// One request's seconds. wall: as the client sees it.
struct request {
    double wall, prefill, decode;
};

// Ids that no cache knows, the same for the same run.
static void fill_ids(int32_t *ids, uint32_t n, uint32_t vocab, uint32_t run)
{
    uint64_t x = 0x9e3779b97f4a7c15u * (run + 1);
    for (uint32_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((x >> 33) % vocab);
    }
}

// Figures are of a device that has finished what it does for later steps while it is idle.
static int wait_until_prepared(struct eval_model *m)
{
    struct nibble_counters now = {.preparing = 1};
    while (now.preparing) {
        int rc = nibble_model_counters(m->session, &now);
        if (rc < 0)
            return cli_failed(m->connection, m->given, rc);
        if (now.preparing)
            poll(NULL, 0, PREPARED_MS);
    }
    return CLI_OK;
}

static int generate(const struct eval *e, struct eval_model *m, const int32_t *ids,
                    struct nibble_event *ret_done)
{
    struct nibble_generate_options options;
    struct nibble_prompt prompt = {.size = sizeof(prompt), .tokens = ids, .n_tokens = e->prompt};
    nibble_job *job = NULL;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = e->gen;
    options.ignore_eos = 1;
    int rc = nibble_generate(m->session, &prompt, &options, NULL, NULL, &job);
    while (rc >= 0 && (rc = nibble_job_next(job, ret_done, -1)) == 1)
        if (ret_done->type == NIBBLE_EVENT_DONE)
            break;
    rc = rc < 0 ? rc : ret_done->error;
    int status = rc < 0 ? cli_failed(m->connection, m->given, rc) : CLI_OK;
    nibble_job_free(job);
    return status;
}

static int run_request(const struct eval *e, struct eval_model *m, uint32_t run,
                       struct request *ret)
{
    int32_t *ids = cli_alloc(e->prompt, sizeof(*ids));
    struct nibble_event done = {.error = 0};
    fill_ids(ids, e->prompt, m->about.vocab, run);
    double began = cli_now();
    int status = generate(e, m, ids, &done);
    free(ids);
    if (status != CLI_OK)
        return status;
    if (done.timings.generated_tokens != e->gen)
        return cli_error("%s: a request gave %u tokens of %u: its context is %u", m->given,
                         done.timings.generated_tokens, e->gen, m->about.context);
    *ret = (struct request){.wall = cli_now() - began,
                            .prefill = 1e-9 * (double)done.timings.prefill_ns,
                            .decode = 1e-9 * (double)done.timings.decode_ns};
    return CLI_OK;
}

// Texts of e->prompt tokens, all at once.
static int run_batch(const struct eval *e, struct eval_model *m, uint32_t n, double *ret_wall)
{
    struct nibble_text texts[BATCH] = {0};
    int32_t *ids = cli_alloc((size_t)n * e->prompt, sizeof(*ids));
    float *vectors = cli_alloc((size_t)n * m->about.embedding, sizeof(*vectors));
    const struct nibble_place out = {.data = vectors};
    for (uint32_t i = 0; i < n; i++) {
        fill_ids(ids + (size_t)i * e->prompt, e->prompt, m->about.vocab, i);
        texts[i].tokens = ids + (size_t)i * e->prompt;
        texts[i].n_tokens = e->prompt;
    }
    double began = cli_now();
    int rc = nibble_embed(m->session, texts, n, NULL, &out, NULL);
    *ret_wall = cli_now() - began;
    free(vectors);
    free(ids);
    return rc < 0 ? cli_failed(m->connection, m->given, rc) : CLI_OK;
}

static void set_energy(json_t *cost, const struct energy *energy, double joules, uint32_t requests)
{
    bool read = joules >= 0;
    json_object_set_new(cost, "joules_per_request",
                        read ? json_real(joules / requests) : json_null());
    json_object_set_new(cost, "energy",
                        json_string(read ? "RAPL, whole packages" : energy->reason));
}

static void set_price(const struct eval *e, json_t *cost, double seconds)
{
    if (e->price <= 0)
        return;
    json_object_set_new(cost, "price_an_hour", json_real((double)e->price));
    json_object_set_new(cost, "cost_of_1000_requests",
                        json_real(1000 * seconds * (double)e->price / 3600));
}

static int cost_generating(const struct eval *e, struct eval_model *m, json_t *cost)
{
    struct request r = {0};
    struct energy energy;
    double *wall = cli_alloc(e->runs, sizeof(double)),
           *prefill = cli_alloc(e->runs, sizeof(double));
    double *decode = cli_alloc(e->runs, sizeof(double));
    int status = run_request(e, m, UINT32_MAX, &r);
    energy_begin(&energy, ENERGY_ROOT);
    for (uint32_t i = 0; i < e->runs && status == CLI_OK; i++) {
        status = run_request(e, m, i, &r);
        wall[i] = r.wall;
        prefill[i] = r.prefill;
        decode[i] = r.decode;
        cli_progress("measuring the cost", i + 1, e->runs);
    }
    double joules = energy_end(&energy);
    if (status == CLI_OK) {
        double request = cli_median(wall, e->runs),
               each = cli_median(decode, e->runs) / (e->gen - 1);
        json_object_set_new(cost, "prefill_tps",
                            json_real(e->prompt / cli_median(prefill, e->runs)));
        json_object_set_new(cost, "decode_tps", json_real(1 / each));
        json_object_set_new(cost, "ms_per_token", json_real(1e3 * each));
        json_object_set_new(cost, "ms_to_first_token",
                            json_real(1e3 * cli_median(prefill, e->runs)));
        json_object_set_new(cost, "request_seconds", json_real(request));
        json_object_update_new(cost, json_pack("{s:i, s:i, s:i}", "prompt", (int)e->prompt, "gen",
                                               (int)e->gen, "runs", (int)e->runs));
        set_price(e, cost, request);
        set_energy(cost, &energy, joules, e->runs);
    }
    free(wall);
    free(prefill);
    free(decode);
    return status;
}

static int median_batch(const struct eval *e, struct eval_model *m, uint32_t n, double *ret)
{
    double *wall = cli_alloc(e->runs, sizeof(*wall));
    int status = run_batch(e, m, n, &wall[0]);
    for (uint32_t i = 0; i < e->runs && status == CLI_OK; i++)
        status = run_batch(e, m, n, &wall[i]);
    *ret = cli_median(wall, e->runs);
    free(wall);
    return status;
}

static int cost_embedding(const struct eval *e, struct eval_model *m, json_t *cost)
{
    struct energy energy;
    double one = 0, batch = 0;
    if (e->prompt > m->about.longest_embedded)
        return cli_usage_error("--request %u: %s embeds %u tokens at most", e->prompt, m->given,
                               m->about.longest_embedded);
    int status = median_batch(e, m, BATCH, &batch);
    energy_begin(&energy, ENERGY_ROOT);
    if (status == CLI_OK)
        status = median_batch(e, m, 1, &one);
    double joules = energy_end(&energy);
    if (status != CLI_OK)
        return status;
    json_object_set_new(cost, "request_seconds", json_real(one));
    json_object_set_new(cost, "batch32_seconds", json_real(batch));
    json_object_set_new(cost, "texts_per_second", json_real(BATCH / batch));
    json_object_update_new(cost,
                           json_pack("{s:i, s:i}", "prompt", (int)e->prompt, "runs", (int)e->runs));
    set_price(e, cost, one);
    set_energy(cost, &energy, joules, e->runs + 1);
    return CLI_OK;
}

int eval_cost(const struct eval *e, struct eval_model *m, json_t *result)
{
    uint64_t weights = m->about.packed_bytes, kv = m->about.kv_bytes;
    json_t *cost = json_pack("{s:I, s:I}", "kv_bytes", (json_int_t)kv, "memory_bytes",
                             (json_int_t)weights + (json_int_t)kv);
    int status = wait_until_prepared(m);
    if (status == CLI_OK)
        status = m->about.embeds_only ? cost_embedding(e, m, cost) : cost_generating(e, m, cost);
    if (status == CLI_OK)
        status = cli_stayed(m->session, m->about.device);
    if (status == CLI_OK)
        json_object_set(result, "cost", cost);
    json_decref(cost);
    return status;
}
