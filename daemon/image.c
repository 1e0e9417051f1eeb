// Sealed images: one for a file, whatever number of models and devices it serves; counted once.
#include "daemon/broker.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void nb_file_identify(const struct stat *st, struct nb_file *ret)
{
    *ret = (struct nb_file){
        .device = st->st_dev,
        .inode = st->st_ino,
        .size = (uint64_t)st->st_size,
        .modified = st->st_mtim,
        .changed = st->st_ctim, // nobody can set it back
    };
}

static int is_same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static int is_same_file(const struct nb_file *a, const struct nb_file *b)
{
    return a->size && a->device == b->device && a->inode == b->inode && a->size == b->size &&
           is_same_time(&a->modified, &b->modified) && is_same_time(&a->changed, &b->changed);
}

const struct nb_model *nb_image_of(const struct nb_model *wanted)
{
    const struct nb_model *model;
    TAILQ_FOREACH(model, &wanted->broker->models, of_broker)
    if (model != wanted && model->image_inode && is_same_file(&model->file, &wanted->file))
        return model;
    return NULL;
}

static int is_first_of_image(const struct nb_model *model)
{
    const struct nb_model *other;
    TAILQ_FOREACH(other, &model->broker->models, of_broker)
    if (other == model || other->image_inode == model->image_inode)
        break;
    return other == model;
}

uint64_t nb_images_bytes(const struct nb_broker *broker)
{
    const struct nb_model *model;
    uint64_t bytes = 0;
    TAILQ_FOREACH(model, &broker->models, of_broker)
    if (model->image_inode && is_first_of_image(model))
        bytes += model->info.packed_bytes;
    return bytes;
}
