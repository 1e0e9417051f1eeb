// Memory that is shared with the worker for matrix jobs: made, registered, and let go.
#include "libclient/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGISTER_MS 60000 // the worker may have to start

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

static int make_file(uint64_t bytes)
{
    if (bytes == 0 || bytes > INT64_MAX)
        return -EINVAL;
    int fd = memfd_create("nibble-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) // before Linux 6.3
        fd = memfd_create("nibble-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0)
        return fd;
    int rc = -errno;
    if (fd >= 0)
        close(fd);
    return rc;
}

int nibble_memory_create(uint64_t bytes, int *ret_fd, void **ret_data)
{
    int fd = make_file(bytes);
    if (fd < 0)
        return fd;
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    *ret_fd = fd;
    *ret_data = data;
    return 0;
}

int nibble_memory_register(nibble_session *session, int fd, uint64_t offset, uint64_t bytes,
                           unsigned flags, nibble_memory **ret_memory)
{
    struct nb_channel *channel = session->channel;
    nibble *c = channel->connection;
    struct nb_wire_register request = {
        .channel = channel->handle, .flags = flags, .offset = offset, .bytes = bytes};
    struct nb_packet reply;
    if (channel->lost)
        return nb_fail(c, channel->lost, "%s", channel->lost_text);
    nibble_memory *memory = calloc(1, sizeof(*memory));
    if (!memory)
        return nb_fail(c, -ENOMEM, "out of memory");
    nb_session_pin(session); // the channel outlives the wait
    int rc = nb_request(c, NB_WIRE_REGISTER, &request, &fd, &reply, REGISTER_MS);
    if (rc >= 0) {
        struct nb_wire_memory registered;
        memcpy(&registered, reply.bytes, sizeof(registered));
        *memory = (nibble_memory){.connection = c, .channel = channel, .region = registered.region};
        nb_list_append(&c->memories, &memory->link);
        *ret_memory = memory;
    } else {
        free(memory);
    }
    nb_session_unpin(session);
    return rc < 0 ? rc : 0;
}

void nibble_memory_unregister(nibble_memory *memory)
{
    if (!memory)
        return;
    const struct nb_channel *channel = memory->channel;
    if (channel && !channel->lost && !memory->connection->broken) {
        struct nb_wire_memory request = {.channel = channel->handle, .region = memory->region};
        nb_tell(memory->connection, NB_WIRE_UNREGISTER, &request);
    }
    nb_list_remove(&memory->link);
    free(memory);
}

void nb_memories_orphan(struct nb_channel *channel)
{
    NB_EACH(link, &channel->connection->memories) {
        nibble_memory *memory = NB_OF(link, nibble_memory, link);
        if (memory->channel == channel)
            memory->channel = NULL;
    }
}

void nb_memories_free(nibble *c)
{
    NB_EACH(link, &c->memories)
        free(NB_OF(link, nibble_memory, link));
}
