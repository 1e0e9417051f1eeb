// Any bytes as a packed model out of the disk cache: mapped, and read to its ends.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensor/image_private.h"
#include "tensor/fail.h"
#include "tests/fuzz/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nb_error error;
    struct nb_image *img;
    int fd = memfd_create("image", MFD_CLOEXEC);
    // The length field is made right, as any attacker would: what follows is what there is to find.
    uint64_t bytes = size;
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    if (size >= sizeof(struct nb_image_header) &&
        pwrite(fd, &bytes, sizeof(bytes), offsetof(struct nb_image_header, bytes)) != sizeof(bytes))
        abort();
    if (nb_image_map(fd, 0, &img, &error) == 0) {
        walk_gguf(nb_image_metadata(img));
        walk_image(img);
        nb_image_unmap(img);
    }
    close(fd);
    return 0;
}
