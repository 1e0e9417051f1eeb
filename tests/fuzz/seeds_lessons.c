// Seeds for fuzz_lessons: a file of two windows, of that target's tokenizer.
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include "tensor/lessons.h"
#include "tests/fuzz/seeds.h"

void write_lessons_seeds(const char *dir)
{
    enum { LENGTH = NB_LESSONS_LEAST, WINDOWS = 2, ROWS = LENGTH * WINDOWS };
    static struct {
        struct nb_lessons_header head;
        char sample[4];
        int32_t ids[2], tokens[ROWS];
        struct {
            struct nb_lesson sums;
            struct nb_kept_logit kept[2];
        } rows[ROWS];
    } file = {.head = {.magic = NB_LESSONS_MAGIC,
                       .version = 1,
                       .vocab = 3,
                       .length = LENGTH,
                       .windows = WINDOWS,
                       .kept = 2,
                       .temperature = 2,
                       .sample_bytes = 3,
                       .sample_tokens = 2},
              .sample = "aba",
              .ids = {2, 0}};
    for (int i = 0; i < ROWS; i++) {
        file.tokens[i] = i % 3;
        file.rows[i].sums = (struct nb_lesson){1.5f, 1.25f};
        file.rows[i].kept[0] = (struct nb_kept_logit){0, 1};
        file.rows[i].kept[1] = (struct nb_kept_logit){2, 0.5f};
    }
    int fd = seed_create(dir, "fuzz_lessons", "two");
    seed_check(write(fd, &file, sizeof(file)) == (ssize_t)sizeof(file) ? 0 : -EIO, "lessons");
    close(fd);
}
