// The journal's bytes. A header and records, all in the host's byte order, because the file stays
// where it was written; each hash is seeded with the one before, so that a record counts at its own
// place alone.
#include "quant/journal.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC   0x314a424eu // "NBJ1"
#define VERSION 1
#define SOME    (1u << 20) // bytes of a file that are hashed at a time

struct header {
    uint32_t magic, version;
    uint8_t key[NB_JOURNAL_KEY];
    uint64_t hash; // of what is before it
};

struct head { // of a record; its data follows
    uint32_t kind, bytes;
    uint64_t hash; // of kind, bytes and data
};

struct nb_journal {
    int fd;
    uint64_t end;   // where the next record goes
    uint64_t chain; // the last hash
};

static uint64_t hash_header(const struct header *h)
{
    return XXH3_64bits(h, offsetof(struct header, hash));
}

static uint64_t hash_record(uint64_t chain, const struct head *head, const void *data)
{
    const uint64_t own = XXH3_64bits_withSeed(head, offsetof(struct head, hash), chain);
    return XXH3_64bits_withSeed(data, head->bytes, own);
}

// Exactly `bytes`: 1, or 0 where the file ends before.
static int read_at(int fd, void *to, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)to + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : 0;
        done += (size_t)n;
    }
    return 1;
}

static int write_at(int fd, const void *from, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)from + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

static int cut(struct nb_journal *j)
{
    return ftruncate(j->fd, (off_t)j->end) < 0 ? -errno : 0;
}

// ---- Opening

// A header that is torn stands for a journal in which nothing was said yet.
static int open_header(struct nb_journal *j, const uint8_t key[NB_JOURNAL_KEY])
{
    struct header h;
    int rc = read_at(j->fd, &h, sizeof(h), 0);
    if (rc < 0)
        return rc;
    if (rc > 0 && h.magic == MAGIC && h.hash == hash_header(&h)) {
        j->end = sizeof(h);
        j->chain = h.hash;
        return h.version == VERSION && memcmp(h.key, key, sizeof(h.key)) == 0 ? 0 : -ESTALE;
    }
    h = (struct header){.magic = MAGIC, .version = VERSION};
    memcpy(h.key, key, sizeof(h.key));
    h.hash = hash_header(&h);
    rc = cut(j);
    if (rc == 0)
        rc = write_at(j->fd, &h, sizeof(h), 0);
    j->end = sizeof(h);
    j->chain = h.hash;
    return rc;
}

// The next record: 1 and its data, malloc'ed; 0 where no whole one follows.
static int read_record(const struct nb_journal *j, struct head *ret_head, void **ret_data)
{
    struct head head;
    int rc = read_at(j->fd, &head, sizeof(head), j->end);
    if (rc <= 0 || head.bytes > NB_JOURNAL_BLOB)
        return rc < 0 ? rc : 0;
    void *data = malloc(head.bytes ? head.bytes : 1);
    if (!data)
        return -ENOMEM;
    rc = read_at(j->fd, data, head.bytes, j->end + sizeof(head));
    if (rc > 0 && hash_record(j->chain, &head, data) != head.hash)
        rc = 0;
    if (rc <= 0) {
        free(data);
        return rc;
    }
    *ret_head = head;
    *ret_data = data;
    return 1;
}

static int visit_all(struct nb_journal *j, nb_journal_visit visit, void *user)
{
    struct head head;
    void *data;
    int rc;
    while ((rc = read_record(j, &head, &data)) > 0) {
        rc = visit(user, head.kind, data, head.bytes);
        free(data);
        if (rc != 0)
            break;
        j->end += sizeof(head) + head.bytes;
        j->chain = head.hash;
    }
    return rc < 0 ? rc : cut(j);
}

int nb_journal_open(int fd, const uint8_t key[NB_JOURNAL_KEY], nb_journal_visit visit, void *user,
                    struct nb_journal **ret, struct nb_error *ret_error)
{
    struct nb_journal *j = calloc(1, sizeof(*j));
    if (!j)
        return nb_fail(ret_error, -ENOMEM, "no memory for the journal");
    j->fd = fd;
    int rc = open_header(j, key);
    if (rc == -ESTALE)
        nb_fail(ret_error, rc,
                "what was done so far belongs to another model, recipe or release of Nibble: "
                "begin anew");
    else if (rc == 0)
        rc = visit_all(j, visit, user);
    if (rc == 0) {
        *ret = j;
        return 0;
    }
    if (rc != -ESTALE)
        nb_fail(ret_error, rc, "the job's journal cannot be read or written: %s", strerror(-rc));
    free(j);
    return rc;
}

void nb_journal_close(struct nb_journal *journal)
{
    free(journal);
}

// ---- Writing

int nb_journal_append(struct nb_journal *j, uint32_t kind, const void *data, uint32_t bytes)
{
    struct head head = {.kind = kind, .bytes = bytes};
    if (bytes > NB_JOURNAL_BLOB)
        return -EFBIG;
    head.hash = hash_record(j->chain, &head, data);
    int rc = write_at(j->fd, &head, sizeof(head), j->end);
    if (rc == 0)
        rc = write_at(j->fd, data, bytes, j->end + sizeof(head));
    if (rc < 0) {
        (void)cut(j); // else the next opening drops it
        return rc;
    }
    j->end += sizeof(head) + bytes;
    j->chain = head.hash;
    return 0;
}

int nb_journal_sync(struct nb_journal *j, const int *fds, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (fdatasync(fds[i]) < 0)
            return -errno;
    return fdatasync(j->fd) < 0 ? -errno : 0;
}

int nb_journal_keep(struct nb_journal *j, uint32_t kind, const void *data, uint32_t bytes,
                    const int *fds, uint32_t n, struct nb_error *ret_error)
{
    int rc = nb_journal_append(j, kind, data, bytes);
    if (rc == 0)
        rc = nb_journal_sync(j, fds, n);
    return rc < 0 ? nb_fail(ret_error, rc, "the job's journal cannot be written: %s", strerror(-rc))
                  : 0;
}

static int hash_place(XXH3_state_t *hash, int fd, struct nb_journal_place place, uint8_t *some)
{
    for (ssize_t n; place.bytes; place.offset += (uint64_t)n, place.bytes -= (uint64_t)n) {
        n = pread(fd, some, place.bytes < SOME ? place.bytes : SOME, (off_t)place.offset);
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        XXH3_64bits_update(hash, some, (size_t)n);
    }
    return 0;
}

int nb_journal_hash(int fd, const struct nb_journal_place *places, uint32_t n, uint64_t *ret)
{
    XXH3_state_t *hash = XXH3_createState();
    uint8_t *some = malloc(SOME);
    int rc = hash && some ? 0 : -ENOMEM;
    if (rc == 0)
        XXH3_64bits_reset(hash);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = hash_place(hash, fd, places[i], some);
    if (rc == 0)
        *ret = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    free(some);
    return rc;
}
