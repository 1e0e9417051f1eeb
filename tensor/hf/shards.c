// A folder's safetensors files, and its texts: see shards.h.
#include "tensor/hf/shards.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tensor/fail.h"
#include "tensor/gguf_private.h"

#define ONE      "model.safetensors"
#define INDEX    "model.safetensors.index.json"
#define TEXT_MAX ((uint64_t)128 << 20)

#define FAIL(code, ...) nb_fail(ret_error, code, __VA_ARGS__)
#define STR(s)          (int)(s).len, (s).data

int64_t nb_hf_file(const struct nb_source *s, const char *base, const char *name)
{
    const size_t n = strlen(base);
    for (uint32_t i = 0; i < s->n_files; i++)
        if (!strncmp(s->files[i].name, base, n) && !strcmp(s->files[i].name + n, name))
            return i;
    return -1;
}

static int read_text(int fd, const char *name, struct nb_str *ret, struct nb_error *ret_error)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return FAIL(-errno, "%s: %s", name, strerror(errno));
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > TEXT_MAX)
        return FAIL(-EFBIG, "%s: not a regular file of at most %" PRIu64 " MiB", name,
                    TEXT_MAX >> 20);
    const size_t size = (size_t)st.st_size;
    char *text = malloc(size + 1);
    if (!text)
        return FAIL(-ENOMEM, "%s: no memory for it", name);
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, text + done, size - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int rc = n < 0 ? -errno : -EINVAL;
            free(text);
            return FAIL(rc, "%s: %s", name, n < 0 ? strerror(-rc) : "the file became shorter");
        }
        done += (size_t)n;
    }
    text[size] = '\0';
    *ret = (struct nb_str){text, size};
    return 0;
}

int nb_hf_text(const struct nb_source *s, const char *base, const char *name,
               struct nb_str *ret_text, struct nb_error *ret_error)
{
    const int64_t i = nb_hf_file(s, base, name);
    *ret_text = (struct nb_str){NULL, 0};
    if (i < 0)
        return 0;
    return read_text(s->files[i].fd, s->files[i].name, ret_text, ret_error);
}

// ---- The index

void nb_hf_shards_finish(struct nb_hf_shards *s)
{
    for (uint32_t i = 0; i < NB_SOURCE_FILES; i++)
        nb_safetensors_finish(&s->files[i]);
    free(s->entries);
    nb_names_finish(&s->names);
    s->entries = NULL;
    s->n = 0;
}

struct nb_hf_entry *nb_hf_shards_find(const struct nb_hf_shards *s, const char *name)
{
    const int64_t i = nb_names_find(&s->names, name);
    return i < 0 ? NULL : &s->entries[i];
}

static int open_file(const struct nb_source *s, uint32_t file, struct nb_hf_shards *shards,
                     struct nb_error *ret_error)
{
    if (shards->files[file].header)
        return 0; // open already
    return nb_safetensors_open(s->files[file].fd, s->files[file].name, &shards->files[file],
                               ret_error);
}

// Opens each file that the index names.
static int open_named(const struct nb_source *s, const char *base, const json_t *map,
                      struct nb_hf_shards *shards, struct nb_error *ret_error)
{
    const char *name;
    const json_t *value;
    char shown[NB_HF_SHOWN_MAX];
    json_t *object = (json_t *)(uintptr_t)map; // the iterator writes nothing
    json_object_foreach(object, name, value) {
        const char *file = json_string_value(value);
        if (!file)
            return FAIL(-EINVAL, "%s%s: it does not name a file for every tensor", base, INDEX);
        const int64_t i = nb_hf_file(s, base, file);
        if (i < 0)
            return FAIL(-ENOENT, "%s%s names %s, which is not in the folder: fetch it", base, INDEX,
                        nb_hf_shown((struct nb_str){file, strlen(file)}, shown));
        int rc = open_file(s, (uint32_t)i, shards, ret_error);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int list_entries(const struct nb_source *s, struct nb_hf_shards *shards,
                        struct nb_error *ret_error)
{
    struct nb_str twice;
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->n_files; i++)
        n += shards->files[i].n;
    if (n > NB_GGUF_MAX_TENSORS)
        return FAIL(-EFBIG, "the folder has %" PRIu64 " tensors; the limit is %d", n,
                    NB_GGUF_MAX_TENSORS);
    shards->entries = calloc(n + 1, sizeof(*shards->entries));
    if (!shards->entries || nb_names_init(&shards->names, (uint32_t)n) < 0)
        return FAIL(-ENOMEM, "no memory for %" PRIu64 " tensors", n);
    for (uint32_t i = 0; i < s->n_files; i++)
        for (uint32_t k = 0; k < shards->files[i].n; k++) {
            const struct nb_safetensor *t = &shards->files[i].tensors[k];
            shards->names.items[shards->n].str = t->name;
            shards->entries[shards->n++] = (struct nb_hf_entry){t, i, false};
        }
    if (nb_names_sort(&shards->names, &twice) < 0)
        return FAIL(-EINVAL,
                    "tensor %.*s is in two safetensors files: one of them is another model's",
                    STR(twice));
    return 0;
}

// Each tensor that there is lies where the index says.
static int check_placed(const struct nb_source *s, const char *base, const json_t *map,
                        const struct nb_hf_shards *shards, struct nb_error *ret_error)
{
    for (uint32_t i = 0; i < s->n_files; i++)
        for (uint32_t k = 0; k < shards->files[i].n; k++) {
            const struct nb_str name =
                shards->files[i].tensors[k].name; // with a NUL, as a JSON key
            const char *file = json_string_value(json_object_get(map, name.data));
            if (!file || nb_hf_file(s, base, file) != i)
                return FAIL(-EINVAL,
                            "%s has tensor %.*s, which " INDEX " does not place there: it is a "
                            "part of another model, fetch it again",
                            s->files[i].name, STR(name));
        }
    return 0;
}

// Each tensor that the index names is there.
static int check_complete(const struct nb_source *s, const char *base, const json_t *map,
                          const struct nb_hf_shards *shards, struct nb_error *ret_error)
{
    const char *name;
    const json_t *value;
    char shown[NB_HF_SHOWN_MAX];
    json_t *object = (json_t *)(uintptr_t)map; // the iterator writes nothing
    json_object_foreach(object, name, value) {
        if (nb_hf_shards_find(shards, name))
            continue;
        return FAIL(-EINVAL,
                    "%s lacks tensor %s, which " INDEX " places there: it is a part of another "
                    "model, fetch it again",
                    s->files[nb_hf_file(s, base, json_string_value(value))].name,
                    nb_hf_shown((struct nb_str){name, strlen(name)}, shown));
    }
    return 0;
}

static int open_index(const struct nb_source *s, const char *base, uint32_t index,
                      struct nb_hf_shards *ret, struct nb_error *ret_error)
{
    struct nb_str text = {NULL, 0};
    json_t *root = NULL;
    const char *name = s->files[index].name;
    int rc = read_text(s->files[index].fd, name, &text, ret_error);
    if (rc < 0)
        return rc;
    rc = nb_hf_json(text, name, &root, ret_error);
    free((char *)(uintptr_t)text.data);
    if (rc < 0)
        return rc;
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map))
        rc = FAIL(-EINVAL, "%s: it has no weight_map", name);
    if (rc == 0)
        rc = open_named(s, base, map, ret, ret_error);
    if (rc == 0)
        rc = check_placed(s, base, map, ret, ret_error);
    if (rc == 0)
        rc = list_entries(s, ret, ret_error);
    if (rc == 0)
        rc = check_complete(s, base, map, ret, ret_error);
    json_decref(root);
    return rc;
}

int nb_hf_shards_open(const struct nb_source *s, const char *base, struct nb_hf_shards *ret,
                      struct nb_error *ret_error)
{
    const int64_t one = nb_hf_file(s, base, ONE), index = nb_hf_file(s, base, INDEX);
    if (one < 0 && index < 0)
        return FAIL(-ENOENT,
                    "the folder has neither %s" ONE " nor %s" INDEX
                    ": weights are read from safetensors files",
                    base, base);
    if (one < 0)
        return open_index(s, base, (uint32_t)index, ret, ret_error);
    int rc = open_file(s, (uint32_t)one, ret, ret_error);
    return rc < 0 ? rc : list_entries(s, ret, ret_error);
}
