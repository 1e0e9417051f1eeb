// Chooses the tile of each GEMM for each count of rows, by timing those that the device's tier
// has on the model's own shapes and weights, one measurement after the other between steps, and
// remembers the choice. Must not change a result: tiles differ in speed alone.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/vulkan/model.h"
#include "machine/clock.h"

#define BUDGET_NS   2000000000 // for all of a model's GEMMs together
#define MOST_BUCKET 7          // 128 rows; what is best there is best for more
#define SHARE       8          // of the budget that one measurement may take
#define ROUNDS      5          // the median counts
#define LAYERS      64 // whose weights are taken one after the other, so that caches are as in a step
#define COLD_BYTES  (100u << 20) // of other weights that a GPU has read since: twice an H100's cache
#define MAX_GEMMS   64
#define WORTH       0.95 // of the usual tile's time: below it another is better

// Dispatches that differ in their weights alone.
struct gemm {
    uint64_t kind;
    struct nb_vulkan_dispatch *of[LAYERS];
    uint32_t n;
    uint32_t most_rows;
    double work, ns; // of a row; what its last bucket has taken in all
    struct nb_vulkan_choice choice;
};

struct nb_vulkan_tuning {
    struct nb_device_model *m;
    struct gemm gemm[MAX_GEMMS];
    uint32_t n;
    uint32_t bucket, at; // the next measurement's
    VkQueryPool queries;
    uint32_t next, other; // whose weights come next: of what is measured, and between
    double left_ns;       // of the budget
    double ns_of_work;    // what a unit of it has taken at last, all rounds together
};

// Without a measurement: the smallest that holds the rows.
static uint32_t usual_tile(const struct nb_tier *t, const struct nb_vulkan_dispatch *p,
                           uint32_t bucket)
{
    uint32_t tile = NB_TIER_TILES - 1;
    while (tile > 0 && t->variant[p->shader][tile - 1].tokens >= 1u << bucket)
        tile--;
    return tile;
}

static void set_usual(const struct nb_vulkan_device *d, struct nb_vulkan_dispatch *p,
                      uint8_t ret[NB_VULKAN_BUCKETS])
{
    for (uint32_t b = 0; b < NB_VULKAN_BUCKETS; b++)
        ret[b] = (uint8_t)(d->tile ? d->tile - 1 : usual_tile(d->tier, p, b));
}

// --- Kinds of GEMMs

static bool has_choice(const struct nb_vulkan_dispatch *p)
{
    for (uint32_t t = 1; t < NB_TIER_TILES; t++)
        if (p->pipeline[t] != p->pipeline[0])
            return true;
    return false;
}

static uint64_t kind_of(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p)
{
    const uint32_t shape[] = {p->units, p->cols};
    uint64_t hash = XXH3_64bits(shape, sizeof(shape));
    for (uint32_t t = 0; t < NB_TIER_TILES; t++) {
        const struct nb_vulkan_pipeline *pipeline = &m->pipelines.list[p->pipeline[t]];
        hash = XXH3_64bits_withSeed(pipeline->variant, sizeof(*pipeline->variant), hash);
        hash = XXH3_64bits_withSeed(pipeline->constants, sizeof(pipeline->constants), hash);
    }
    return hash;
}

static void add_gemm(struct nb_vulkan_tuning *tuning, struct nb_vulkan_dispatch *p, uint64_t kind)
{
    struct nb_device_model *m = tuning->m;
    struct gemm *of = tuning->gemm, *end = of + tuning->n;
    const bool tail = (uint32_t)(p - m->program.dispatches) >= m->program.tail;
    while (of < end && of->kind != kind)
        of++;
    if (of == end) {
        if (tuning->n == MAX_GEMMS)
            return;
        *of = (struct gemm){.kind = kind, .choice.gemm = kind};
        of->work = (double)p->units * p->cols;
        of->most_rows = tail ? m->extent.wanted_rows : m->extent.max_rows;
        memcpy(of->choice.tile, p->best, sizeof(p->best));
        tuning->n++;
    }
    // What the tail writes has room for its own rows alone.
    if (of->n < LAYERS && of->most_rows <= (tail ? m->extent.wanted_rows : m->extent.max_rows))
        of->of[of->n++] = p;
}

static void list_gemms(struct nb_vulkan_tuning *tuning)
{
    struct nb_device_model *m = tuning->m;
    for (uint32_t i = 0; i < m->program.n; i++) {
        struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        set_usual(m->device, p, p->best);
        if (!has_choice(p) || m->device->tile)
            continue;
        uint64_t kind = kind_of(m, p);
        const struct nb_vulkan_choice *known = nb_vulkan_choice_find(m->device, kind);
        if (known)
            memcpy(p->best, known->tile, sizeof(p->best));
        else if (m->device->warm)
            add_gemm(tuning, p, kind);
    }
}

// --- Measuring

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t weight_bytes(const struct nb_vulkan_dispatch *p)
{
    return p->units / 4 * (uint64_t)p->group_bytes;
}

static bool is_among(const struct gemm *of, const struct nb_vulkan_dispatch *p)
{
    for (uint32_t i = 0; i < of->n; i++)
        if (of->of[i] == p)
            return true;
    return false;
}

// Between two measurements of a GPU's GEMM other weights are read, as in a step, until those
// that come next are in no cache; all of them at most. A CPU's cache holds less than its own
// layers.
static void chill(struct nb_vulkan_tuning *tuning, const struct gemm *of, VkCommandBuffer c)
{
    const struct nb_device_model *m = tuning->m;
    uint64_t bytes = of->n * weight_bytes(of->of[0]);
    for (uint32_t i = 0; !m->device->info.is_cpu && i < m->program.n && bytes < COLD_BYTES; i++) {
        const struct nb_vulkan_dispatch *p = &m->program.dispatches[tuning->other++ % m->program.n];
        if (is_among(of, p) || weight_bytes(p) == 0)
            continue;
        nb_vulkan_dispatch(&m->pipelines, c, 1, p, p->tile[0]);
        nb_vulkan_after_dispatch(m->device, c);
        bytes += weight_bytes(p);
    }
}

// The tiles are measured in rounds, so that what slows the machine down for a while slows all of
// them, on what the model's buffers hold; each dispatch has another layer's weights, so that none
// finds in a cache what the one before it has read.
static void record_rounds(struct nb_vulkan_tuning *tuning, const struct gemm *of, uint32_t bucket,
                          VkCommandBuffer c)
{
    const struct nb_vk *vk = &tuning->m->device->vk;
    const VkPipelineStageFlags compute = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
    vk->CmdResetQueryPool(c, tuning->queries, 0, 2 * ROUNDS * NB_TIER_TILES);
    for (uint32_t i = 0; i < ROUNDS * NB_TIER_TILES; i++) {
        chill(tuning, of, c);
        vk->CmdWriteTimestamp(c, compute, tuning->queries, 2 * i);
        nb_vulkan_dispatch(&tuning->m->pipelines, c, 1u << bucket, of->of[tuning->next++ % of->n],
                           i % NB_TIER_TILES);
        vk->CmdWriteTimestamp(c, compute, tuning->queries, 2 * i + 1);
        nb_vulkan_after_dispatch(tuning->m->device, c);
    }
}

// As many rows, all at the first position of a sequence whose only block is this one.
static void write_step(struct nb_device_model *m, uint32_t rows, uint32_t block)
{
    uint32_t *word = m->buffers.step.map;
    word[STEP_ROWS] = word[STEP_WANTED] = rows;
    memset(word + m->tables.position, 0, rows * sizeof(*word));
    memset(word + m->tables.sequence, 0, rows * sizeof(*word));
    memset(word + m->tables.adapter, 0, rows * sizeof(*word));
    for (uint32_t i = 0; i < rows; i++)
        word[m->tables.end + i] = 1;
    word[m->tables.blocks] = block;
}

static int time_tiles(struct nb_vulkan_tuning *tuning, const struct gemm *of, uint32_t bucket,
                      uint64_t ret[NB_TIER_TILES])
{
    const struct nb_device_model *m = tuning->m;
    uint64_t tick[ROUNDS][NB_TIER_TILES][2], ticks[ROUNDS];
    VkCommandBuffer c;
    int rc = nb_vulkan_begin(m->device, true, &c);
    if (rc < 0)
        return rc;
    record_rounds(tuning, of, bucket, c);
    rc = nb_vulkan_run_once(m->device, c);
    if (rc == 0)
        rc = nb_vk_errno(m->device->vk.GetQueryPoolResults(
            m->device->device, tuning->queries, 0, 2 * ROUNDS * NB_TIER_TILES, sizeof(tick), tick,
            sizeof(tick[0][0][0]), VK_QUERY_RESULT_64_BIT));
    for (uint32_t t = 0; rc == 0 && t < NB_TIER_TILES; t++) {
        for (uint32_t r = 0; r < ROUNDS; r++)
            ticks[r] = (tick[r][t][1] - tick[r][t][0]) & m->device->tick_mask;
        qsort(ticks, ROUNDS, sizeof(*ticks), by_value);
        ret[t] = ticks[ROUNDS / 2];
    }
    return rc;
}

// A measurement that would take too much of the budget is left out: the usual tile stays.
static bool is_affordable(const struct nb_vulkan_tuning *tuning, const struct gemm *of)
{
    double expected = of->ns > 0 ? 2 * of->ns : of->work * tuning->ns_of_work;
    return expected * SHARE <= BUDGET_NS && expected <= tuning->left_ns;
}

static int choose(struct nb_vulkan_tuning *tuning, struct gemm *of, uint32_t bucket)
{
    uint64_t ticks[NB_TIER_TILES], begin = nb_now_ns();
    uint8_t *chosen = &of->choice.tile[bucket];
    uint32_t usual = *chosen, best = 0;
    int rc = time_tiles(tuning, of, bucket, ticks);
    for (uint32_t t = 1; rc == 0 && t < NB_TIER_TILES; t++)
        best = ticks[t] < ticks[best] ? t : best;
    if (rc == 0 && (double)ticks[best] < WORTH * (double)ticks[usual])
        *chosen = (uint8_t)best;
    if (rc == 0 && bucket == MOST_BUCKET)
        memset(chosen, *chosen, NB_VULKAN_BUCKETS - MOST_BUCKET);
    of->ns = (double)(nb_now_ns() - begin);
    tuning->left_ns -= of->ns;
    tuning->ns_of_work = of->ns / of->work;
    return rc;
}

// --- All of it

int nb_vulkan_tune_begin(struct nb_device_model *m)
{
    const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = 2 * ROUNDS * NB_TIER_TILES};
    struct nb_vulkan_tuning *tuning = m->tuning = calloc(1, sizeof(*tuning));
    if (!tuning)
        return -ENOMEM;
    tuning->m = m;
    tuning->left_ns = BUDGET_NS;
    list_gemms(tuning);
    if (tuning->n == 0) {
        nb_vulkan_tune_end(m);
        return 0;
    }
    struct nb_vulkan_device *d = m->device;
    return nb_vk_errno(d->vk.CreateQueryPool(d->device, &info, NULL, &tuning->queries));
}

void nb_vulkan_tune_end(struct nb_device_model *m)
{
    if (m->tuning)
        m->device->vk.DestroyQueryPool(m->device->device, m->tuning->queries, NULL);
    free(m->tuning);
    m->tuning = NULL;
}

bool nb_vulkan_tune_wants(const struct nb_device_model *m, const struct nb_vulkan_dispatch *p)
{
    for (uint32_t i = 0; m->tuning && i < m->tuning->n; i++)
        for (uint32_t j = 0; j < m->tuning->gemm[i].n; j++)
            if (m->tuning->gemm[i].of[j] == p)
                return true;
    return false;
}

static void keep_all(struct nb_vulkan_tuning *tuning)
{
    struct nb_device_model *m = tuning->m;
    for (uint32_t i = 0; i < tuning->n; i++)
        nb_vulkan_choice_save(m->device, &tuning->gemm[i].choice);
    for (uint32_t i = 0; i < m->program.n; i++) {
        struct nb_vulkan_dispatch *p = &m->program.dispatches[i];
        const struct nb_vulkan_choice *c =
            has_choice(p) ? nb_vulkan_choice_find(m->device, kind_of(m, p)) : NULL;
        if (c)
            memcpy(p->best, c->tile, sizeof(p->best));
    }
}

// Few rows first: decode is what most steps do. Without a block nothing can be measured; then the
// next start has another try.
int nb_vulkan_tune_piece(struct nb_device_model *m, uint32_t free_block)
{
    struct nb_vulkan_tuning *tuning = m->tuning;
    bool measured = free_block == NB_NO_BLOCK;
    int rc = 0;
    while (!measured && tuning->bucket <= MOST_BUCKET) {
        struct gemm *of = &tuning->gemm[tuning->at];
        const uint32_t bucket = tuning->bucket, rows = 1u << bucket;
        measured = rows <= of->most_rows && is_affordable(tuning, of);
        if (measured) {
            write_step(m, rows, free_block);
            rc = choose(tuning, of, bucket);
        }
        tuning->at = (tuning->at + 1) % tuning->n;
        tuning->bucket += tuning->at == 0;
    }
    if (rc < 0)
        return rc;
    if (tuning->bucket <= MOST_BUCKET && free_block != NB_NO_BLOCK)
        return 1;
    if (free_block != NB_NO_BLOCK)
        keep_all(tuning);
    nb_vulkan_tune_end(m);
    return 0;
}
