// GGUF as a source: one file, or the parts of one that was split (NAME-00001-of-0000N.gguf). The
// first part has the model's metadata; each says which one it is and how many tensors all have.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/gguf_kvs.h"
#include "tensor/gguf_private.h"
#include "tensor/source.h"

#define STR(s) (int)(s).len, (s).data

static int no_memory(struct nb_error *ret_error)
{
    return nb_fail(ret_error, -ENOMEM, "no memory for the list of tensors");
}

static int make_room(struct nb_source *s, uint64_t n)
{
    s->tensors = calloc(n + 1, sizeof(*s->tensors));
    s->pieces = calloc(n + 1, sizeof(*s->pieces));
    return s->tensors && s->pieces ? 0 : -ENOMEM;
}

static void add_tensors(struct nb_source *s, const struct nb_gguf *g, uint32_t file)
{
    for (uint64_t i = 0; i < nb_gguf_n_tensors(g); i++) {
        const struct nb_gguf_tensor *from = nb_gguf_tensor(g, i);
        struct nb_piece *piece = &s->pieces[s->n_pieces++];
        *piece = (struct nb_piece){
            .name = from->name, .tensor = s->n_tensors, .file = file, .offset = from->offset};
        struct nb_source_tensor *t = &s->tensors[s->n_tensors++];
        *t = (struct nb_source_tensor){.name = from->name,
                                       .type = from->type,
                                       .n_dims = from->n_dims,
                                       .bytes = from->bytes,
                                       .pieces = piece,
                                       .n_pieces = 1,
                                       .stored = from->type};
        memcpy(t->dims, from->dims, sizeof(t->dims));
    }
}

static int open_one(struct nb_source *s, struct nb_error *ret_error)
{
    struct nb_gguf *g = NULL;
    uint64_t count = 0;
    int rc = nb_gguf_open(s->files[0].fd, &g, ret_error);
    if (rc < 0)
        return rc;
    s->metadata = g;
    (void)nb_gguf_u64(g, "split.count", &count);
    if (count > 1)
        return nb_fail(ret_error, -EINVAL,
                       "the file is one of %" PRIu64 " parts of a model: give the first one, "
                       "NAME-00001-of-%05" PRIu64 ".gguf, with the others beside it",
                       count, count);
    if (make_room(s, nb_gguf_n_tensors(g)) < 0)
        return no_memory(ret_error);
    add_tensors(s, g, 0);
    return 0;
}

// ---- Parts

struct parts {
    uint32_t n;
    struct nb_gguf *files[NB_SOURCE_FILES];
};

static void free_parts(void *kept)
{
    struct parts *p = kept;
    for (uint32_t i = 0; i < p->n; i++)
        nb_gguf_close(p->files[i]);
    free(p);
}

#define PART_FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)

static int check_part(const struct nb_source *s, const struct nb_gguf *g, uint32_t i,
                      struct nb_error *ret_error)
{
    const char *name = s->files[i].name;
    uint64_t count = 0, number = 0, tensors = 0;
    if (nb_gguf_u64(g, "split.count", &count) < 0 || nb_gguf_u64(g, "split.no", &number) < 0 ||
        nb_gguf_u64(g, "split.tensors.count", &tensors) < 0)
        return PART_FAIL(-EINVAL,
                         "%s: its metadata lacks split.no, split.count or split.tensors.count: it "
                         "is no part of a model",
                         name);
    if (count != s->n_files)
        return PART_FAIL(-EINVAL,
                         "%s: it is a part of a model of %" PRIu64 " parts, and this one has "
                         "%" PRIu32 ": fetch its parts again",
                         name, count, s->n_files);
    if (number != i)
        return PART_FAIL(-EINVAL,
                         "%s: it is part %" PRIu64 " by its metadata and %" PRIu32
                         " by its name: give the parts the names they had",
                         name, number + 1, i + 1);
    return 0;
}

// A later part has no metadata of the model, or that of the first.
static int check_model(const struct nb_source *s, const struct parts *p, uint32_t i,
                       struct nb_error *ret_error)
{
    static const char *const keys[] = {"general.architecture", "general.name"};
    uint64_t first = 0, own = 0;
    bool same = true;
    (void)nb_gguf_u64(p->files[0], "split.tensors.count", &first);
    (void)nb_gguf_u64(p->files[i], "split.tensors.count", &own);
    for (size_t k = 0; k < sizeof(keys) / sizeof(keys[0]); k++) {
        struct nb_str a = {"", 0}, b = {"", 0};
        if (nb_gguf_str(p->files[i], keys[k], &b) < 0)
            continue;
        (void)nb_gguf_str(p->files[0], keys[k], &a);
        same = same && a.len == b.len && !memcmp(a.data, b.data, a.len);
    }
    if (first == own && same)
        return 0;
    return PART_FAIL(-EINVAL, "%s: it is a part of another model than %s: fetch it again",
                     s->files[i].name, s->files[0].name);
}

static int open_part(const struct nb_source *s, struct parts *p, uint32_t i,
                     struct nb_error *ret_error)
{
    struct nb_error text = {""};
    int rc = nb_gguf_open(s->files[i].fd, &p->files[i], &text);
    if (rc < 0)
        return PART_FAIL(rc, "%s: %s", s->files[i].name, text.text);
    p->n = i + 1;
    rc = check_part(s, p->files[i], i, ret_error);
    return rc < 0 || i == 0 ? rc : check_model(s, p, i, ret_error);
}

static int check_names(const struct nb_source *s, struct nb_error *ret_error)
{
    struct nb_names names;
    struct nb_str twice;
    if (nb_names_init(&names, s->n_tensors) < 0)
        return no_memory(ret_error);
    for (uint32_t i = 0; i < s->n_tensors; i++)
        names.items[i].str = s->tensors[i].name;
    int rc = nb_names_sort(&names, &twice);
    if (rc < 0)
        rc = PART_FAIL(-EINVAL, "tensor %.*s comes twice: the parts are not of one model",
                       STR(twice));
    nb_names_finish(&names);
    return rc;
}

static int join_tensors(struct nb_source *s, const struct parts *p, struct nb_error *ret_error)
{
    uint64_t wanted = 0, n = 0;
    (void)nb_gguf_u64(p->files[0], "split.tensors.count", &wanted);
    for (uint32_t i = 0; i < p->n; i++)
        n += nb_gguf_n_tensors(p->files[i]);
    if (n != wanted || n > NB_GGUF_MAX_TENSORS)
        return PART_FAIL(-EINVAL,
                         "%s: the model has %" PRIu64 " tensors by its metadata and %" PRIu64
                         " in its parts (the limit is %d): fetch them again",
                         s->files[0].name, wanted, n, NB_GGUF_MAX_TENSORS);
    if (make_room(s, n) < 0)
        return no_memory(ret_error);
    for (uint32_t i = 0; i < p->n; i++)
        add_tensors(s, p->files[i], i);
    return check_names(s, ret_error);
}

// The first part's, of a whole model.
static int join_metadata(struct nb_source *s, const struct nb_gguf *first,
                         struct nb_error *ret_error)
{
    struct nb_gguf_kvs kvs = {0};
    int rc = nb_gguf_kvs_copy(&kvs, first, "split.");
    rc = rc < 0 ? no_memory(ret_error)
                : nb_gguf_kvs_parse(&kvs, s->n_tensors, &s->metadata, ret_error);
    nb_gguf_kvs_finish(&kvs);
    return rc;
}

static int open_parts(struct nb_source *s, struct nb_error *ret_error)
{
    struct parts *p = calloc(1, sizeof(*p));
    if (!p)
        return no_memory(ret_error);
    s->kept = p;
    s->free_kept = free_parts;
    int rc = 0;
    for (uint32_t i = 0; i < s->n_files && rc == 0; i++)
        rc = open_part(s, p, i, ret_error);
    if (rc == 0)
        rc = join_tensors(s, p, ret_error);
    return rc < 0 ? rc : join_metadata(s, p->files[0], ret_error);
}

int nb_source_open_gguf(const struct nb_source_file *files, uint32_t n_files,
                        struct nb_source **ret, struct nb_error *ret_error)
{
    struct nb_source *s;
    int rc = nb_source_create(files, n_files, &s, ret_error);
    if (rc < 0)
        return rc;
    rc = (n_files > 1 ? open_parts : open_one)(s, ret_error);
    if (rc < 0)
        nb_source_close(s);
    else
        *ret = s;
    return rc;
}
