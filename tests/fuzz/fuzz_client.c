// Any bytes as what a daemon and a worker say to a client: packets with and without fds, and the
// memory of a channel with its completions. Whatever comes, every call returns, nothing is leaked,
// and no fd stays open.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libclient/include/nibble.h"
#include "libclient/ring.h"
#include "libclient/wire.h"
#include "tests/fuzz/client_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_connect(int sock, const struct sockaddr *address, socklen_t size);

#define RECORDS_MAX 32
#define SEALS       (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int ends[2]; // the daemon's, the client's
static volatile unsigned read_bytes;

// The library's socket becomes the end of our pair.
int __wrap_connect(int sock, const struct sockaddr *address, socklen_t size)
{
    return dup2(ends[1], sock) < 0 ? -1 : 0;
}

static void must(int condition)
{
    if (!condition)
        abort();
}

static int lowest_free_fd(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

struct input {
    const uint8_t *at;
    size_t left;
};

static const uint8_t *take(struct input *in, size_t size)
{
    const uint8_t *at = in->at;
    if (size > in->left)
        return NULL;
    in->at += size;
    in->left -= size;
    return at;
}

// A channel's memory, with completions that are there from the beginning.
static int make_memory(uint32_t tail, const uint8_t *completions, size_t size)
{
    int fd = memfd_create("channel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(fd >= 0 && ftruncate(fd, (off_t)NB_CHANNEL_BYTES(NB_ARENA_MIN)) == 0);
    off_t at_tail = offsetof(struct nb_ring_indices, cq_tail);
    must(pwrite(fd, &tail, sizeof(tail), at_tail) == (ssize_t)sizeof(tail));
    must(size == 0 || pwrite(fd, completions, size, NB_CHANNEL_CQ_OFFSET) == (ssize_t)size);
    must(fcntl(fd, F_ADD_SEALS, SEALS) == 0);
    return fd;
}

static void send_packet(const uint8_t *bytes, size_t size, const int *fds, size_t n_fds)
{
    char control[CMSG_SPACE(CLIENT_INPUT_FDS * sizeof(int))] = {0};
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (n_fds) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, n_fds * sizeof(int));
    }
    sendmsg(ends[0], &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// One record of client_input.h. False at the end.
static bool play(struct input *in)
{
    const uint8_t *head = take(in, sizeof(struct client_record));
    struct client_record record;
    if (!head)
        return false;
    memcpy(&record, head, sizeof(record));
    const uint8_t *packet = take(in, record.packet_size);
    const uint8_t *completions = take(in, record.memory_size);
    if (!packet || !completions)
        return false;
    int pair[2], fds[CLIENT_INPUT_FDS];
    must(nb_wire_pair(SOCK_STREAM, pair) == 0);
    fds[0] = make_memory(record.cq_tail, completions, record.memory_size);
    for (size_t i = 1; i < CLIENT_INPUT_FDS; i++)
        fds[i] = pair[1];
    send_packet(packet, record.packet_size, fds, record.n_fds % (CLIENT_INPUT_FDS + 1));
    nb_wire_close_fds((int[]){fds[0], pair[0], pair[1]}, 3);
    return true;
}

static int on_row(void *user, size_t position, const float *logits, size_t vocab)
{
    return 0;
}

// Matrix jobs in registered memory and through the arena.
static void operate(nibble_session *session)
{
    struct nibble_tensor tensor = {.rows = 4, .cols = 32};
    nibble_memory *memory = NULL;
    nibble_job *job = NULL;
    void *data;
    int fd;
    float x[32] = {0}, y[4];
    struct nibble_matrix w = {.size = sizeof(w), .tensor = &tensor};
    struct nibble_place from = {.data = x}, to = {.data = y};
    must(nibble_memory_create(4096, &fd, &data) == 0);
    nibble_tensor_find(session, "output.weight", &tensor);
    tensor.rows = 4;
    tensor.cols = 32;
    if (nibble_memory_register(session, fd, 0, 4096, 0, &memory) == 0)
        w = (struct nibble_matrix){.size = sizeof(w),
                                   .bits = 4,
                                   .rows = 4,
                                   .cols = 32,
                                   .codes.memory = memory,
                                   .scales.memory = memory};
    if (nibble_gemm(session, &w, &from, 1, &to, NIBBLE_PRECISION_FAST, NULL, NULL, &job) == 0)
        nibble_job_wait(job);
    nibble_job_free(job);
    job = NULL;
    nibble_dequantize(session, &w, 1, 1, NIBBLE_NUMBER_F32, &from, NULL, NULL, NULL, &job);
    nibble_memory_unregister(memory);
    nibble_job_free(job);
    munmap(data, 4096);
    close(fd);
}

static void use_session(nibble *c, nibble_session *session)
{
    int32_t tokens[8] = {1, 2, 3};
    float scores[8];
    char text[64];
    nibble_job *job = NULL, *other = NULL;
    struct nibble_event event;
    struct nibble_message message = {"user", "hello"};
    const struct nibble_chat chat = {
        .size = sizeof(chat), .messages_json = "[{}]", .tools_json = "[]"};
    struct nibble_prompt prompt = {.size = sizeof(prompt), .tokens = tokens, .n_tokens = 3};
    nibble_session *second;
    nibble_generate(session, &prompt, NULL, NULL, NULL, &job);
    if (nibble_session_open(c, "m", NULL, &second) == 0) {
        prompt =
            (struct nibble_prompt){.size = sizeof(prompt), .messages = &message, .n_messages = 1};
        nibble_generate(second, &prompt, NULL, NULL, NULL, &other);
    }
    for (int i = 0; job && i < 100 && nibble_job_next(job, &event, 0) == 1; i++) {
        for (size_t b = 0; b < event.text_len; b++)
            read_bytes += (unsigned char)event.text[b];
        must(!event.reason == !event.error && event.reasoning >= 0 && event.reasoning <= 1);
        read_bytes += event.reason ? (unsigned)strlen(event.reason) : 0;
    }
    nibble_tokenize(session, "text", 4, 0, tokens, 8);
    nibble_detokenize(session, tokens, 2, text, sizeof(text));
    nibble_render(session, &chat, text, sizeof(text), tokens, 8, NULL);
    nibble_score(session, tokens, 3, 0, scores);
    nibble_logits(session, tokens, 3, 0, on_row, NULL);
    nibble_job_free(job);
    operate(session);
    if (other)
        nibble_job_wait(other);
}

static int on_job(void *user, const struct nibble_jobs_row *row)
{
    read_bytes += (unsigned)(strlen(row->state) + strlen(row->text));
    return row->done == 3;
}

static void use_jobs(nibble *c)
{
    const struct nibble_compress_options recipe = {.size = sizeof(recipe), .recipe = "{}"};
    uint64_t job;
    const struct nibble_jobs_wait_options options = {.size = sizeof(options), .progress = on_job};
    struct nibble_jobs_row row;
    struct nibble_jobs_result info;
    int fd;
    if (nibble_jobs(c, &row, 1) >= 1)
        read_bytes += (unsigned)(strlen(row.name) + strlen(row.text));
    nibble_compress(c, "/proc/self/exe", &recipe, &job);
    nibble_jobs_wait(c, 1, &options);
    nibble_jobs_control(c, 1, NIBBLE_JOBS_PAUSE);
    if (nibble_jobs_result(c, 1, 0, &fd, &info) == 0) {
        read_bytes += (unsigned)strlen(info.name);
        close(fd);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct nibble_model model;
    struct nibble_status status;
    nibble *c;
    nibble_session *session;
    int free_fd = lowest_free_fd();
    must(nb_wire_pair(SOCK_SEQPACKET, ends) == 0);
    for (int i = 0; i < RECORDS_MAX && play(&in); i++)
        ;
    shutdown(ends[0], SHUT_WR); // so that every wait comes to its end
    if (nibble_connect("/fuzz", &c) == 0) {
        if (nibble_session_open(c, "m", NULL, &session) == 0)
            use_session(c, session);
        use_jobs(c);
        nibble_models(c, &model, 1);
        nibble_get_status(c, &status);
        nibble_dispatch(c, 0);
        nibble_close(c);
    }
    nb_wire_close_fds(ends, 2);
    if (lowest_free_fd() != free_fd) {
        fprintf(stderr, "an fd was lost\n");
        abort();
    }
    return 0;
}
