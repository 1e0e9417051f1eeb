// The control groups that this process is in, of both versions, from its own group up to the
// highest one that it can see. Reads /proc and the groups' files; changes nothing.
#pragma once

#include <stdint.h>

#define NB_GROUP_NAME 36 // of a group's name as it is shown

struct nb_group {
    const char *dir; // where its files are
    const char *name;
    int version; // 1 or 2
};
typedef void nb_group_visit(void *user, const struct nb_group *group);

// Visits the groups of a controller ("cpu", "memory"). A machine may have both versions mounted and
// the controller in one of them: a file that is not there sets no limit. `root` stands before every
// path: "" but in tests.
void nb_groups_each(const char *root, const char *controller, nb_group_visit *visit, void *user);

// The number in a group's file, at its beginning or behind `key`; UINT64_MAX for "max", for a
// number that is none, and where there is no such file or key.
uint64_t nb_group_number(const struct nb_group *group, const char *file, const char *key);

// The number behind `key` at the beginning of one of the file's lines, with the same exceptions.
uint64_t nb_file_number(const char *path, const char *key);
