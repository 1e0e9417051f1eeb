// Text that a job takes beside its model: files, and folders of them, by their names alone.
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "libclient/files.h"

#define DEPTH 16 // of folders in folders

struct texts {
    struct nb_model_files *files;
    const char *prefix;
    char *ret_error;
    size_t error_size;
};

static bool is_text(const char *name)
{
    static const char *const ends[] = {".txt", ".md", ".rst", ".jsonl", ".ndjson"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof(ends) / sizeof(*ends); i++)
        if (!strcmp(dot, ends[i]))
            return true;
    return false;
}

static int is_shown(const struct dirent *entry)
{
    return *entry->d_name != '.';
}

// The same in every locale.
static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int add_folder(const struct texts *t, const char *path, int depth);

// A link that leads nowhere is none.
static int add_entry(const struct texts *t, const char *folder, const char *name, int depth)
{
    char path[PATH_MAX];
    struct stat st;
    const int len = snprintf(path, sizeof(path), "%s/%s", folder, name);
    if (len >= (int)sizeof(path) || depth > DEPTH) {
        snprintf(t->ret_error, t->error_size, "%s: folders in folders, too deep to follow", folder);
        return -ELOOP;
    }
    if (stat(path, &st) < 0)
        return 0;
    if (S_ISDIR(st.st_mode))
        return add_folder(t, path, depth + 1);
    return S_ISREG(st.st_mode) && is_text(name)
               ? nb_model_files_add(t->files, path, t->prefix, t->ret_error, t->error_size)
               : 0;
}

static int add_folder(const struct texts *t, const char *path, int depth)
{
    struct dirent **entries = NULL;
    const int n = scandir(path, &entries, is_shown, by_name);
    int rc = n < 0 ? -errno : 0;
    if (rc < 0)
        snprintf(t->ret_error, t->error_size, "%s: %s", path, strerror(-rc));
    for (int i = 0; i < n; i++) {
        rc = rc < 0 ? rc : add_entry(t, path, entries[i]->d_name, depth);
        free(entries[i]);
    }
    free(entries);
    return rc;
}

int nb_model_files_add_texts(struct nb_model_files *files, const char *path, const char *prefix,
                             char *ret_error, size_t error_size)
{
    const struct texts t = {files, prefix, ret_error, error_size};
    const size_t before = files->n;
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return nb_model_files_add(files, path, prefix, ret_error, error_size);
    int rc = add_folder(&t, path, 0);
    if (rc < 0 || files->n > before)
        return rc;
    snprintf(ret_error, error_size, "%s: no text is in it (.txt, .md, .rst, .jsonl, .ndjson)",
             path);
    return -ENOENT;
}
