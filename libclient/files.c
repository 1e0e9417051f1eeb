// Which files a model has, by their names alone: what is in them is for others to read. See
// files.h.
#include "libclient/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct opening {
    struct nb_model_files files;
    int folder; // fd of what names are within
    char *ret_error;
    size_t error_size;
};

__attribute__((format(printf, 3, 4))) static int fail(const struct opening *o, int code,
                                                      const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(o->ret_error, o->error_size, format, arguments);
    va_end(arguments);
    return code;
}

void nb_model_files_close(struct nb_model_files *files)
{
    for (size_t i = 0; i < files->n; i++)
        close(files->items[i].fd);
    free(files->items);
    *files = (struct nb_model_files){0};
}

// ---- One file

// What a path is, where it is no regular file.
static const char *odd_kind(mode_t mode)
{
    static const struct {
        mode_t type;
        const char *name;
    } kinds[] = {
        {S_IFDIR, "a directory"},        {S_IFIFO, "a FIFO"},         {S_IFSOCK, "a socket"},
        {S_IFCHR, "a character device"}, {S_IFBLK, "a block device"},
    };
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        if ((mode & S_IFMT) == kinds[i].type)
            return kinds[i].name;
    return NULL;
}

// Looked at before it is opened, because opening a device may do something, and again after it,
// when nobody can change it. O_NONBLOCK: a FIFO that came in between is not waited for. A negative
// errno, or -EINVAL with *ret_odd.
static int open_regular(int folder, const char *name, const char **ret_odd)
{
    struct stat st;
    *ret_odd = NULL;
    if (fstatat(folder, name, &st, 0) < 0)
        return -errno;
    if ((*ret_odd = odd_kind(st.st_mode)))
        return -EINVAL;
    int fd = openat(folder, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fstat(fd, &st) < 0 ? -errno : 0;
    if (rc == 0 && (*ret_odd = odd_kind(st.st_mode)))
        rc = -EINVAL;
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

// `prefix` goes before the name in errors.
static int add(struct opening *o, const char *prefix, const char *name)
{
    const char *odd, *colon = *prefix ? ": " : "";
    if (o->files.n == NB_WIRE_FILES)
        return fail(o, -E2BIG, "it has more than %d files, the most that a model may have",
                    NB_WIRE_FILES);
    struct nb_model_file *grown =
        reallocarray(o->files.items, o->files.n + 1, sizeof(*o->files.items));
    if (!grown)
        return fail(o, -ENOMEM, "out of memory");
    o->files.items = grown;
    int fd = open_regular(o->folder, name, &odd);
    if (fd < 0 && odd)
        return fail(o, fd, "%s%sit is %s, and no regular file or folder", prefix, colon, odd);
    if (fd < 0)
        return fail(o, fd, "%s%s%s", prefix, colon, strerror(-fd));
    struct nb_model_file *file = &o->files.items[o->files.n++];
    file->fd = fd;
    snprintf(file->name, sizeof(file->name), "%.255s", name);
    return 0;
}

// ---- Parts

// NAME-00001-of-00003.gguf: what is in it.
struct part {
    unsigned number, count;
    size_t stem; // the length of NAME
};

static unsigned digits(const char *text, size_t n)
{
    unsigned value = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return 0;
        value = 10 * value + (unsigned)(text[i] - '0');
    }
    return value;
}

static bool is_part(const char *name, struct part *ret)
{
    static const char pattern[] = "-00001-of-00003.gguf";
    const size_t len = strlen(name), n = sizeof(pattern) - 1;
    if (len < n)
        return false;
    const char *end = name + len - n;
    if (*end != '-' || strncmp(end + 6, "-of-", 4) != 0 || strcmp(end + 15, ".gguf"))
        return false;
    *ret = (struct part){digits(end + 1, 5), digits(end + 10, 5), len - n};
    return ret->number && ret->count;
}

static int add_parts(struct opening *o, const char *name, const struct part *part)
{
    char other[NB_WIRE_FILE_NAME];
    if (part->number != 1)
        return fail(o, -EINVAL, "it is part %u of %u: give the first one, %.*s-00001-of-%05u.gguf",
                    part->number, part->count, (int)part->stem, name, part->count);
    for (unsigned i = 1; i <= part->count; i++) {
        snprintf(other, sizeof(other), "%.*s-%05u-of-%05u.gguf", (int)part->stem, name, i,
                 part->count);
        int rc = add(o, i == 1 ? "" : other, other);
        if (rc == -ENOENT)
            fail(o, rc, "part %u of %u, %s, is not beside it: fetch it", i, part->count, other);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int open_file(struct opening *o, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char folder[PATH_MAX];
    struct part part;
    if (strlen(path) >= sizeof(folder) || strlen(name) >= NB_WIRE_FILE_NAME)
        return fail(o, -ENAMETOOLONG, "%s", strerror(ENAMETOOLONG));
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    o->folder = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (o->folder < 0)
        return fail(o, -errno, "%s", strerror(errno));
    return is_part(name, &part) ? add_parts(o, name, &part) : add(o, "", name);
}

// ---- Folders

static bool ends_with(const char *name, const char *end)
{
    const size_t len = strlen(name), n = strlen(end);
    return len > n && !strcmp(name + len - n, end);
}

static bool is_wanted(const char *name)
{
    static const char *const names[] = {
        "config.json",         "generation_config.json",       "tokenizer.json",
        "modules.json",        "special_tokens_map.json",      "tokenizer_config.json",
        "chat_template.jinja", "model.safetensors.index.json",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (!strcmp(name, names[i]))
            return true;
    return ends_with(name, ".safetensors");
}

// A part of a sentence-transformers folder: "1_Pooling".
static bool is_module(const char *name)
{
    const size_t n = strspn(name, "0123456789");
    return n > 0 && name[n] == '_';
}

static bool is_folder(const struct opening *o, const char *name)
{
    struct stat st;
    return fstatat(o->folder, name, &st, 0) == 0 && S_ISDIR(st.st_mode);
}

// What is wanted of the folder `within` ("": the model's own).
static int add_folder(struct opening *o, const char *within)
{
    char name[2 * NB_WIRE_FILE_NAME];
    int fd = openat(o->folder, *within ? within : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int rc = fail(o, -errno, "%s%s%s", within, *within ? ": " : "", strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
    int rc = 0;
    for (const struct dirent *entry; rc == 0 && (errno = 0, entry = readdir(dir));) {
        snprintf(name, sizeof(name), "%s%s%s", within, *within ? "/" : "", entry->d_name);
        if (is_wanted(entry->d_name) && strlen(name) < NB_WIRE_FILE_NAME)
            rc = add(o, name, name);
        else if (!*within && is_module(entry->d_name) && is_folder(o, entry->d_name))
            rc = add_folder(o, entry->d_name);
    }
    if (rc == 0 && errno)
        rc = fail(o, -errno, "%s%s%s", within, *within ? ": " : "", strerror(errno));
    closedir(dir);
    return rc;
}

static int by_name(const void *a, const void *b)
{
    const struct nb_model_file *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int open_folder(struct opening *o, const char *path)
{
    bool is_model = false;
    o->folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->folder < 0)
        return fail(o, -errno, "%s", strerror(errno));
    int rc = add_folder(o, "");
    if (rc < 0)
        return rc;
    if (o->files.n)
        qsort(o->files.items, o->files.n, sizeof(*o->files.items), by_name);
    for (size_t i = 0; i < o->files.n; i++)
        is_model = is_model || !strcmp(o->files.items[i].name, "config.json") ||
                   !strcmp(o->files.items[i].name, "modules.json");
    if (is_model)
        return 0;
    return fail(o, -ENOENT,
                "the folder has no config.json: a model's folder from Hugging Face has one; of a "
                "GGUF, give the file");
}

int nb_model_files_open(const char *path, struct nb_model_files *ret, char *ret_error,
                        size_t error_size)
{
    struct opening o = {.folder = -1};
    struct stat st;
    o.ret_error = ret_error;
    o.error_size = error_size;
    int rc;
    if (stat(path, &st) < 0)
        rc = fail(&o, -errno, "%s", strerror(errno));
    else
        rc = S_ISDIR(st.st_mode) ? open_folder(&o, path) : open_file(&o, path);
    if (o.folder >= 0)
        close(o.folder);
    if (rc < 0)
        nb_model_files_close(&o.files);
    else
        *ret = o.files;
    return rc;
}

static bool is_taken(const struct nb_model_files *files, const char *name)
{
    for (size_t i = 0; i < files->n; i++)
        if (!strcmp(files->items[i].name, name))
            return true;
    return false;
}

int nb_model_files_add(struct nb_model_files *files, const char *path, const char *prefix,
                       char *ret_error, size_t error_size)
{
    struct opening o = {.files = *files, .folder = AT_FDCWD};
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char whole[NB_WIRE_FILE_NAME];
    o.ret_error = ret_error;
    o.error_size = error_size;
    int rc = add(&o, path, path);
    *files = o.files;
    if (rc < 0)
        return rc;
    snprintf(whole, sizeof(whole), "%s%.200s", prefix, name);
    if (is_taken(files, whole)) // there is one of another folder
        snprintf(whole, sizeof(whole), "%s%zu/%.200s", prefix, files->n, name);
    snprintf(files->items[files->n - 1].name, sizeof(whole), "%s", whole);
    return 0;
}

// What a path ends with as ":SCALE", which is cut off; 1 where it does not, or where a file has all
// of it for its name.
static float cut_scale(char *path)
{
    char *colon = strrchr(path, ':'), *end;
    if (!colon || access(path, F_OK) == 0)
        return 1;
    const float scale = strtof(colon + 1, &end);
    if (end == colon + 1 || *end)
        return 1;
    *colon = '\0';
    return scale;
}

// Scales are read and written with a point, whatever the application's locale has.
static locale_t use_plain_numbers(locale_t *ret_plain)
{
    *ret_plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    return *ret_plain ? uselocale(*ret_plain) : (locale_t)0;
}

static void use_numbers_of(locale_t before, locale_t plain)
{
    uselocale(before);
    freelocale(plain);
}

static int add_adapters(struct nb_model_files *files, const char *const *adapters, size_t n,
                        char *ret_error, size_t error_size)
{
    int rc = 0;
    for (size_t i = 0; i < n && rc >= 0; i++) {
        char prefix[48], *path = strdup(adapters[i]);
        if (!path)
            return -ENOMEM;
        const float scale = cut_scale(path);
        snprintf(prefix, sizeof(prefix), NB_MODEL_ADAPTER "%.9g/", (double)scale);
        rc = nb_model_files_add(files, path, prefix, ret_error, error_size);
        free(path);
    }
    return rc;
}

int nb_model_files_add_adapters(struct nb_model_files *files, const char *const *adapters, size_t n,
                                char *ret_error, size_t error_size)
{
    locale_t plain, before = use_plain_numbers(&plain);
    if (!plain)
        return -ENOMEM;
    int rc = add_adapters(files, adapters, n, ret_error, error_size);
    use_numbers_of(before, plain);
    return rc;
}

int nb_model_files_open_adapter(const char *path, struct nb_model_files *ret, float *ret_scale,
                                char *ret_error, size_t error_size)
{
    char *file = strdup(path);
    locale_t plain = (locale_t)0, before = file ? use_plain_numbers(&plain) : (locale_t)0;
    int rc = plain ? 0 : -ENOMEM;
    if (rc == 0) {
        *ret_scale = cut_scale(file);
        use_numbers_of(before, plain);
        rc = nb_model_files_open(file, ret, ret_error, error_size);
    }
    free(file);
    return rc;
}
