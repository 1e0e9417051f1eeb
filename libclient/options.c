// See options.h.
#include "libclient/options.h"

#include <errno.h>
#include <string.h>

#include "libclient/client.h"

#define LARGEST 1024 // a larger size is one that nobody has set

// Up to the last member of the first release that has the struct. A member that is added later
// comes after all others, and starts where the struct ended before: there is no padding at the end.
#define UP_TO(type, last)                                                                          \
#type, (uint32_t)(offsetof(struct type, last) + sizeof((struct type *)0)->last)

const struct nb_option_struct nb_option_structs[NB_OPTIONS_COUNT] = {
    [NB_OPTIONS_LOAD] = {UP_TO(nibble_load_options, user), sizeof(struct nibble_load_options)},
    [NB_OPTIONS_SESSION] = {UP_TO(nibble_session_options, arena_bytes),
                            sizeof(struct nibble_session_options)},
    [NB_OPTIONS_CHAT] = {UP_TO(nibble_chat, template_text), sizeof(struct nibble_chat)},
    [NB_OPTIONS_PROMPT] = {UP_TO(nibble_prompt, chat), sizeof(struct nibble_prompt)},
    [NB_OPTIONS_GENERATE] = {UP_TO(nibble_generate_options, logprobs),
                             sizeof(struct nibble_generate_options)},
    [NB_OPTIONS_EMBED] = {UP_TO(nibble_embed_options, user), sizeof(struct nibble_embed_options)},
    [NB_OPTIONS_MATRIX] = {UP_TO(nibble_matrix, zeros), sizeof(struct nibble_matrix)},
    [NB_OPTIONS_COMPRESS] = {UP_TO(nibble_compress_options, kind),
                             sizeof(struct nibble_compress_options)},
    [NB_OPTIONS_JOBS_WAIT] = {UP_TO(nibble_jobs_wait_options, user),
                              sizeof(struct nibble_jobs_wait_options)},
};

int nb_options_copy(const struct nb_option_struct *s, const void *given, void *ret)
{
    uint32_t size;
    memcpy(&size, given, sizeof(size));
    if (size < s->first || size > LARGEST)
        return -EINVAL;
    for (uint32_t i = s->size; i < size; i++)
        if (((const unsigned char *)given)[i])
            return -E2BIG;
    uint32_t known = size < s->size ? size : s->size;
    memcpy(ret, given, known);
    memset((unsigned char *)ret + known, 0, s->size - known);
    return 0;
}

int nb_options_read(nibble *c, enum nb_options which, const void *given, void *ret)
{
    const struct nb_option_struct *s = &nb_option_structs[which];
    int rc = given ? nb_options_copy(s, given, ret) : -EFAULT;
    if (rc == -EFAULT)
        return nb_fail(c, -EINVAL, "struct %s is missing", s->name);
    if (rc == -EINVAL)
        return nb_fail(c, rc, "the size of struct %s is not set: set it to sizeof(struct %s)",
                       s->name, s->name);
    if (rc == -E2BIG)
        return nb_fail(c, rc,
                       "struct %s has members set that libnibble %s does not know: install the "
                       "libnibble that the program was built for",
                       s->name, nibble_version());
    return 0;
}
