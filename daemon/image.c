// Sealed images: one for the same files, whatever number of models and devices it serves; counted
// once.
#include "daemon/image.h"

#include "daemon/broker.h"
#include "daemon/files.h"
#include "daemon/model.h"

static bool is_of_same_files(const struct nb_model *a, const struct nb_model *b)
{
    return a->n_files && a->n_files == b->n_files &&
           nb_files_are_same(a->files, b->files, a->n_files);
}

const struct nb_model *nb_image_of(const struct nb_model *wanted)
{
    const struct nb_model *model;
    TAILQ_FOREACH(model, &wanted->broker->models, of_broker)
        if (model != wanted && model->image_inode && is_of_same_files(model, wanted) &&
            (wanted->force || !model->zeros))
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
