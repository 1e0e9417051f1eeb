// See lessons.h.
#include "distill/lessons.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static_assert(NB_LESSONS_LENGTH == NB_WINDOWS_LENGTH && NB_LESSONS_WINDOWS == NB_WINDOWS_MAX,
              "a text and its lessons are cut alike");

struct found {
    uint64_t hash; // of a window's tokens
    uint32_t window;
};

struct nb_lessons {
    struct nb_source_file file;
    struct nb_lessons_header head;
    uint64_t rows_at; // in the file
    int32_t *tokens;
    struct found *windows; // ascending
    void *row;             // of one window, as in the file
};

static size_t row_bytes(const struct nb_lessons *l)
{
    return sizeof(struct nb_lesson) + l->head.kept * sizeof(struct nb_kept_logit);
}

static int read_at(const struct nb_lessons *l, uint64_t at, void *ret, size_t bytes)
{
    uint8_t *to = ret;
    for (ssize_t n; bytes; to += n, at += (uint64_t)n, bytes -= (size_t)n) {
        n = pread(l->file.fd, to, bytes, (off_t)at);
        if (n <= 0)
            return n < 0 ? -errno : -EBADMSG;
    }
    return 0;
}

bool nb_lessons_are(const struct nb_source_file *files, uint32_t n)
{
    char magic[8];
    bool some = false;
    for (uint32_t i = 0; i < n && !some; i++)
        some = pread(files[i].fd, magic, sizeof(magic), 0) == sizeof(magic) &&
               !memcmp(magic, NB_LESSONS_MAGIC, sizeof(magic));
    return some;
}

// --- Opening

static uint32_t padded(uint32_t bytes)
{
    return (bytes + 3) / 4 * 4;
}

static int check_header(struct nb_lessons *l, struct nb_error *e)
{
    const struct nb_lessons_header *h = &l->head;
    struct stat st;
    bool good = h->version == 1 && h->length >= NB_LESSONS_LEAST &&
                h->length <= NB_LESSONS_LENGTH && h->windows >= 1 &&
                h->windows <= NB_LESSONS_WINDOWS && h->kept >= 1 && h->kept <= NB_LESSONS_KEPT &&
                h->kept <= h->vocab && h->temperature >= 0.01f && h->temperature <= 100 &&
                h->sample_bytes <= NB_LESSONS_SAMPLE && h->sample_tokens <= h->sample_bytes;
    for (int i = 0; i < 6; i++)
        good = good && !h->reserved[i];
    if (!good)
        return nb_fail(e, -EINVAL, "%.200s: its header is not that of lessons", l->file.name);
    const uint64_t n = (uint64_t)h->windows * h->length;
    l->rows_at = sizeof(*h) + padded(h->sample_bytes) + 4ull * h->sample_tokens + 4 * n;
    if (fstat(l->file.fd, &st) < 0 || (uint64_t)st.st_size != l->rows_at + n * row_bytes(l))
        return nb_fail(e, -EINVAL, "%.200s: its length is not what its header says", l->file.name);
    return 0;
}

// The student's tokenizer makes of the piece of text what the teacher's has made.
static int check_sample(const struct nb_lessons *l, const struct nb_tokenizer *t, const char *text,
                        const int32_t *tokens, struct nb_error *e)
{
    struct nb_tokens own = {0};
    const uint32_t n = l->head.sample_tokens;
    int rc = nb_tokenizer_encode(t, text, l->head.sample_bytes, false, false, &own);
    const bool same = rc == 0 && nb_tokenizer_vocab(t) == l->head.vocab && own.n == n &&
                      (!n || !memcmp(own.id, tokens, n * sizeof(*tokens)));
    nb_tokens_finish(&own);
    return same ? 0
                : nb_fail(e, -EINVAL,
                          "%.200s is of a teacher with another tokenizer than the student: have "
                          "it write text (nibble run), and train on that with --hard 1",
                          l->file.name);
}

static int read_sample(const struct nb_lessons *l, const struct nb_tokenizer *t, struct nb_error *e)
{
    char text[NB_LESSONS_SAMPLE];
    int32_t *tokens = malloc(NB_LESSONS_SAMPLE * sizeof(*tokens));
    const uint32_t bytes = padded(l->head.sample_bytes);
    int rc = tokens ? read_at(l, sizeof(l->head), text, bytes) : -ENOMEM;
    if (rc == 0)
        rc = read_at(l, sizeof(l->head) + bytes, tokens, 4ul * l->head.sample_tokens);
    rc = rc < 0 ? nb_fail(e, rc, "%.200s cannot be read: %s", l->file.name, strerror(-rc))
                : check_sample(l, t, text, tokens, e);
    free(tokens);
    return rc;
}

static int by_hash(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return (x->hash > y->hash) - (x->hash < y->hash);
}

static uint64_t hash_of(const struct nb_lessons *l, const int32_t *tokens)
{
    return XXH3_64bits(tokens, l->head.length * sizeof(*tokens));
}

static int read_tokens(struct nb_lessons *l, struct nb_error *e)
{
    const struct nb_lessons_header *h = &l->head;
    const size_t n = (size_t)h->windows * h->length;
    l->tokens = malloc(n * sizeof(*l->tokens));
    l->windows = malloc(h->windows * sizeof(*l->windows));
    l->row = malloc(h->length * row_bytes(l));
    if (!l->tokens || !l->windows || !l->row)
        return nb_fail(e, -ENOMEM, "no memory for the lessons");
    int rc = read_at(l, l->rows_at - n * sizeof(*l->tokens), l->tokens, n * sizeof(*l->tokens));
    if (rc < 0)
        return nb_fail(e, rc, "%.200s cannot be read: %s", l->file.name, strerror(-rc));
    for (uint32_t i = 0; i < h->windows; i++)
        l->windows[i] = (struct found){hash_of(l, l->tokens + (size_t)i * h->length), i};
    qsort(l->windows, h->windows, sizeof(*l->windows), by_hash);
    return 0;
}

int nb_lessons_open(const struct nb_source_file *file, const struct nb_tokenizer *t,
                    struct nb_lessons **ret, struct nb_error *ret_error)
{
    struct nb_lessons *l = calloc(1, sizeof(*l));
    if (!l)
        return nb_fail(ret_error, -ENOMEM, "no memory for the lessons");
    l->file = *file;
    int rc = read_at(l, 0, &l->head, sizeof(l->head));
    rc = rc < 0 ? nb_fail(ret_error, rc, "%.200s cannot be read: %s", file->name, strerror(-rc))
                : check_header(l, ret_error);
    if (rc == 0)
        rc = read_sample(l, t, ret_error);
    if (rc == 0)
        rc = read_tokens(l, ret_error);
    if (rc < 0)
        nb_lessons_close(l);
    else
        *ret = l;
    return rc;
}

void nb_lessons_close(struct nb_lessons *l)
{
    if (!l)
        return;
    free(l->tokens);
    free(l->windows);
    free(l->row);
    free(l);
}

const struct nb_lessons_header *nb_lessons_header(const struct nb_lessons *l)
{
    return &l->head;
}

int nb_lessons_windows(const struct nb_lessons *l, struct nb_windows *ret)
{
    const size_t bytes = (size_t)l->head.windows * l->head.length * sizeof(*l->tokens);
    *ret = (struct nb_windows){.n = l->head.windows, .length = l->head.length};
    ret->tokens = malloc(bytes);
    if (!ret->tokens)
        return -ENOMEM;
    memcpy(ret->tokens, l->tokens, bytes);
    return 0;
}

// --- Rows

static int find(const struct nb_lessons *l, const int32_t *tokens, uint32_t *ret)
{
    const struct found wanted = {.hash = hash_of(l, tokens)};
    const struct found *f =
        bsearch(&wanted, l->windows, l->head.windows, sizeof(*l->windows), by_hash);
    const size_t length = l->head.length;
    if (!f || memcmp(l->tokens + f->window * length, tokens, length * sizeof(*tokens)) != 0)
        return -ENOENT;
    *ret = f->window;
    return 0;
}

// Tokens ascend, and all numbers are finite.
static bool is_sound(const struct nb_lessons *l, const struct nb_lesson *sums,
                     const struct nb_kept_logit *kept)
{
    bool good = isfinite(sums->log_sum) && isfinite(sums->warm_log_sum);
    for (uint32_t i = 0; i < l->head.kept && good; i++)
        good = kept[i].id < l->head.vocab && (i == 0 || kept[i].id > kept[i - 1].id) &&
               isfinite(kept[i].logit);
    return good;
}

int nb_lessons_read(const struct nb_lessons *l, const int32_t *tokens, struct nb_lesson *ret_sums,
                    struct nb_kept_logit *ret_kept)
{
    const size_t bytes = row_bytes(l), kept = l->head.kept;
    uint32_t window;
    int rc = find(l, tokens, &window);
    if (rc == 0)
        rc = read_at(l, l->rows_at + (uint64_t)window * l->head.length * bytes, l->row,
                     l->head.length * bytes);
    for (uint32_t i = 0; i < l->head.length && rc == 0; i++) {
        const uint8_t *row = (const uint8_t *)l->row + i * bytes;
        memcpy(&ret_sums[i], row, sizeof(*ret_sums));
        memcpy(ret_kept + i * kept, row + sizeof(*ret_sums), kept * sizeof(*ret_kept));
        rc = is_sound(l, &ret_sums[i], ret_kept + i * kept) ? 0 : -EBADMSG;
    }
    return rc;
}
