// A model that eval asks: opened by name or loaded from a file, on a connection of its own.
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/cli/eval/eval.h"

#define LOGITS_ARENA (32u << 20) // 16 rows of logits; the library divides a window accordingly

// Room for the logits, and for the longest text with its ids.
static uint64_t arena_bytes(const struct eval *e)
{
    size_t longest = e->passages.len;
    for (size_t i = 0; i < e->text_files.n; i++)
        longest = e->texts[i].len > longest ? e->texts[i].len : longest;
    uint64_t text = longest + 4 * (longest + 16) + 65536;
    return text > LOGITS_ARENA ? text : LOGITS_ARENA;
}

int eval_model_open(const struct eval *e, const char *given, const char *role,
                    const struct nibble_load_options *how, struct eval_model *ret)
{
    *ret = (struct eval_model){.given = given, .role = role};
    int status = cli_model_or_file(&e->common, given, how, &ret->loaded);
    if (status != CLI_OK)
        return status;
    if (!(ret->connection = cli_connect(&e->common)))
        return CLI_FAILED;
    if (!(ret->session = cli_session(ret->connection, ret->loaded.name, NULL, arena_bytes(e),
                                     NIBBLE_DRAFTS_OFF)))
        return CLI_FAILED;
    ret->about = *nibble_session_model(ret->session);
    return CLI_OK;
}

void eval_model_close(struct eval_model *m)
{
    free(m->vectors);
    nibble_session_close(m->session);
    nibble_close(m->connection);
    cli_model_release(&m->loaded);
    *m = (struct eval_model){0};
}

int eval_tokenize(struct eval_model *m, const char *text, size_t len, unsigned flags,
                  int32_t **ret_ids)
{
    return cli_tokenize(m->connection, m->session, m->given, text, len, flags, ret_ids);
}

static uint64_t file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
}

static uint64_t folder_bytes(const char *path)
{
    uint64_t sum = 0;
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char *inside = NULL;
        if (asprintf(&inside, "%s/%s", path, entry->d_name) < 0)
            exit(cli_error("out of memory"));
        sum += file_bytes(inside);
        free(inside);
    }
    if (folder)
        closedir(folder);
    return sum;
}

// The parts of NAME-00001-of-00003.gguf; 0: it is no such name.
static uint64_t parts_bytes(const char *path)
{
    static const char form[] = "-00001-of-00000.gguf";
    size_t len = strlen(path), tail = sizeof(form) - 1;
    unsigned first = 0, parts = 0;
    int end = 0;
    if (len <= tail || sscanf(path + len - tail, "-%5u-of-%5u.gguf%n", &first, &parts, &end) != 2 ||
        first != 1 || (size_t)end != tail)
        return 0;
    uint64_t sum = 0;
    for (unsigned i = 1; i <= parts; i++) {
        char *part = NULL;
        if (asprintf(&part, "%.*s-%05u-of-%05u.gguf", (int)(len - tail), path, i, parts) < 0)
            exit(cli_error("out of memory"));
        sum += file_bytes(part);
        free(part);
    }
    return sum;
}

uint64_t eval_file_bytes(const struct eval_model *m)
{
    struct stat st;
    if (!m->loaded.admin || stat(m->given, &st) < 0)
        return 0;
    if (S_ISDIR(st.st_mode))
        return folder_bytes(m->given);
    uint64_t parts = parts_bytes(m->given);
    return parts ? parts : (uint64_t)st.st_size;
}

double eval_log_sum_exp(const float *logits, size_t vocab, size_t *ret_top)
{
    size_t top = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[top])
            top = i;
    double sum = 0;
    for (size_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - (double)logits[top]);
    *ret_top = top;
    return (double)logits[top] + (sum > 0 ? log(sum) : NAN);
}

json_t *eval_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *eval_interval(struct stats_interval i)
{
    if (!isfinite(i.low) || !isfinite(i.high))
        return json_null();
    return json_pack("[f, f]", i.low, i.high);
}
