// fuzz_client's seeds: what a right daemon and worker say, in the order in which the target asks.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/include/nibble.h"
#include "libclient/ring.h"
#include "libclient/wire.h"
#include "tests/fuzz/client_input.h"

static void put(FILE *out, uint32_t type, uint32_t serial, void *packet, size_t size,
                uint32_t n_fds, const struct nb_completion *completions, uint32_t n)
{
    struct nb_wire_header *header = packet;
    *header = (struct nb_wire_header){type, (uint32_t)size, serial, 0};
    struct client_record record = {(uint16_t)size, (uint16_t)(n * sizeof(*completions)), n_fds, n};
    fwrite(&record, sizeof(record), 1, out);
    fwrite(packet, size, 1, out);
    if (n)
        fwrite(completions, sizeof(*completions), n, out);
}

static void put_status(FILE *out, uint32_t type, uint32_t serial, int32_t status, void *packet,
                       size_t size)
{
    struct nb_wire_header *header = packet;
    *header = (struct nb_wire_header){type, (uint32_t)size, serial, status};
    struct client_record record = {(uint16_t)size, 0, 0, 0};
    fwrite(&record, sizeof(record), 1, out);
    fwrite(packet, size, 1, out);
}

static void greet(FILE *out)
{
    struct nb_wire_hello hello = {.magic = NB_WIRE_MAGIC, .version_min = 1, .version_max = 1};
    put(out, NB_WIRE_HELLO | NB_WIRE_REPLY, 1, &hello, sizeof(hello), 0, NULL, 0);
}

// The first job's name is 0x100: the first submission, in the first slot.
static uint32_t generation(struct nb_completion *out)
{
    const struct nb_completion said[] = {
        {.user_data = 0x100, .kind = NB_COMPLETION_PREFILL, .a = 3, .b = 3},
        {.user_data = 0x100, .kind = NB_COMPLETION_TOKEN, .token = 7, .a = 40, .text_len = 32},
        {.user_data = 0x100, .kind = NB_COMPLETION_TEXT, .text_len = 8},
        {.user_data = 0x100, .kind = NB_COMPLETION_TOKEN, .token = 8, .a = 1, .text_len = 1},
        {.user_data = 0x100, .kind = NB_COMPLETION_TEXT, .text_len = 1, .b = NB_TEXT_REASONING},
        {.user_data = 0x100, .kind = NB_COMPLETION_DONE, .done = {.finish = NIBBLE_FINISH_EOS}},
    };
    memcpy(out, said, sizeof(said));
    return sizeof(said) / sizeof(*said);
}

static void open_channel(FILE *out)
{
    struct nb_completion completions[8];
    struct {
        struct nb_wire_list_reply head;
        struct nibble_model row;
    } list = {.head = {.n = 1, .total = 1, .row_size = sizeof(list.row)},
              .row = {.name = "m", .vocab = 100, .context = 64}};
    struct nb_wire_channel channel = {.channel = 1, .arena_bytes = NB_ARENA_MIN};
    put(out, NB_WIRE_OPEN_CHANNEL | NB_WIRE_REPLY, 2, &channel, sizeof(channel), 2, completions,
        generation(completions));
    put(out, NB_WIRE_LIST | NB_WIRE_REPLY, 3, &list, sizeof(list), 0, NULL, 0);
    put(out, NB_WIRE_LIST | NB_WIRE_REPLY, 4, &list, sizeof(list), 0, NULL, 0);
}

// The calls that the target waits in are answered by the next worker, and the next: the same jobs
// under new names.
static void answer_calls(FILE *out)
{
    for (uint64_t i = 2; i < 10; i++) {
        struct nb_completion done[] = {
            {.user_data = i << 8, .kind = NB_COMPLETION_DONE, .a = 3},
            {.user_data = (i + 1) << 8 | 1, .kind = NB_COMPLETION_REASON, .text_len = 32},
            {.user_data = (i + 1) << 8 | 1, .kind = NB_COMPLETION_DONE, .a = 3, .status = -22},
        };
        struct nb_wire_channel rebind = {.channel = 1, .arena_bytes = NB_ARENA_MIN};
        put(out, NB_WIRE_REBIND, 0, &rebind, sizeof(rebind), 2, done, 3);
    }
}

static void answer_register(FILE *out)
{
    struct nb_wire_memory memory = {.channel = 1, .region = 1};
    put(out, NB_WIRE_REGISTER | NB_WIRE_REPLY, 5, &memory, sizeof(memory), 0, NULL, 0);
}

// What comes after a session that could not be opened.
static void answer_jobs(FILE *out)
{
    struct nb_wire_error error = {.text = "no such model"};
    struct {
        struct nb_wire_list_reply head;
        struct nibble_jobs_row row;
    } list = {.head = {.n = 1, .total = 1, .row_size = sizeof(list.row)},
              .row = {.id = 1, .name = "m", .state = "running"}};
    struct nb_wire_job_progress progress = {.job = 1, .done = 1, .total = 4, .state = "running"};
    struct nb_wire_empty empty;
    struct nb_wire_job job = {.job = 1};
    struct nb_wire_job_result result = {.job = 1, .bytes = 5, .n = 1, .name = "model.gguf"};
    put_status(out, NB_WIRE_OPEN_CHANNEL | NB_WIRE_REPLY, 2, -2, &error, sizeof(error));
    put(out, NB_WIRE_LIST | NB_WIRE_REPLY, 3, &list, sizeof(list), 0, NULL, 0);
    put(out, NB_WIRE_JOB_FILES, 4, &job, sizeof(job), 1, NULL, 0);
    put(out, NB_WIRE_JOB_START | NB_WIRE_REPLY, 4, &job, sizeof(job), 0, NULL, 0);
    put(out, NB_WIRE_JOB_PROGRESS, 5, &progress, sizeof(progress), 0, NULL, 0);
    put(out, NB_WIRE_JOB_WAIT | NB_WIRE_REPLY, 5, &empty, sizeof(empty), 0, NULL, 0);
    put(out, NB_WIRE_JOB_CONTROL | NB_WIRE_REPLY, 6, &empty, sizeof(empty), 0, NULL, 0);
    put(out, NB_WIRE_JOB_RESULT | NB_WIRE_REPLY, 7, &result, sizeof(result), 1, NULL, 0);
}

static void end_channel(FILE *out)
{
    struct nb_wire_channel_ref lost = {.channel = 1, .text = "unloaded"};
    put(out, NB_WIRE_CHANNEL_LOST, 0, &lost, sizeof(lost), 0, NULL, 0);
}

static FILE *create(const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/fuzz_client/%s", dir, name);
    FILE *out = fopen(path, "we");
    if (!out) {
        perror(path);
        exit(1);
    }
    return out;
}

void write_client_seeds(const char *dir)
{
    static const struct {
        const char *name;
        void (*parts[6])(FILE *);
    } seeds[] = {
        {"greeting", {greet}},
        {"channel", {greet, open_channel}},
        {"lost", {greet, open_channel, end_channel}},
        {"moved", {greet, open_channel, answer_calls, end_channel}},
        {"jobs", {greet, answer_jobs}},
        {"matrices", {greet, open_channel, answer_calls, answer_register, end_channel}},
    };
    char path[4096];
    snprintf(path, sizeof(path), "%s/fuzz_client", dir);
    mkdir(path, 0755);
    for (size_t i = 0; i < sizeof(seeds) / sizeof(*seeds); i++) {
        FILE *out = create(dir, seeds[i].name);
        for (size_t p = 0; seeds[i].parts[p]; p++)
            seeds[i].parts[p](out);
        fclose(out);
    }
}
