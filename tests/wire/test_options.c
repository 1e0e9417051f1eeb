// Option structs of any size: an older or newer caller's are read as far as both sides know them,
// and every call names the struct whose size is not set.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "libclient/options.h"
#include "tests/wire/client_util.h"

// options.c is compiled into this test, because the library does not export its inside. What it
// says of a failure goes nowhere; the calls below go to the library.
__attribute__((format(printf, 3, 4))) int nb_fail(nibble *c, int code, const char *format, ...);
int nb_fail(nibble *c, int code, const char *format, ...)
{
    return code;
}

// The last `size` bytes before a page that cannot be read, filled with 7s behind the size.
static unsigned char *at_the_end(uint32_t size)
{
    static unsigned char *page;
    size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    if (!page)
        page = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(page, MAP_FAILED);
    assert_int_equal(mprotect(page + bytes, bytes, PROT_NONE), 0);
    unsigned char *given = page + bytes - size;
    memset(given, 7, size);
    memcpy(given, &size, sizeof(size));
    return given;
}

static void an_older_callers_struct_is_read_to_its_end(void **state)
{
    static const struct nb_option_struct s = {"made_up", 16, 32};
    static const unsigned char zero[16];
    unsigned char own[32];
    memset(own, 9, sizeof(own));
    assert_int_equal(nb_options_copy(&s, at_the_end(16), own), 0);
    assert_int_equal(own[4], 7);
    assert_int_equal(own[15], 7);
    assert_memory_equal(own + 16, zero, 16);
    assert_int_equal(nb_options_copy(&s, at_the_end(24), own), 0);
    assert_int_equal(own[23], 7);
    assert_memory_equal(own + 24, zero, 8);
}

static void a_newer_callers_struct_is_read_as_far_as_it_is_known(void **state)
{
    static const struct nb_option_struct s = {"made_up", 16, 32};
    unsigned char own[33];
    memset(own, 9, sizeof(own));
    unsigned char *given = at_the_end(48);
    assert_int_equal(nb_options_copy(&s, given, own), -E2BIG);
    assert_int_equal(own[0], 9);
    memset(given + 32, 0, 16);
    assert_int_equal(nb_options_copy(&s, given, own), 0);
    assert_int_equal(own[31], 7);
    assert_int_equal(own[32], 9);
    given[47] = 1;
    assert_int_equal(nb_options_copy(&s, given, own), -E2BIG);
}

static void a_size_that_cannot_be_is_refused(void **state)
{
    static const struct nb_option_struct s = {"made_up", 16, 32};
    unsigned char own[32] = {9};
    unsigned char *given = at_the_end(32);
    for (size_t i = 0; i < 3; i++) {
        const uint32_t sizes[] = {0, 15, UINT32_MAX};
        memcpy(given, &sizes[i], sizeof(sizes[i]));
        assert_int_equal(nb_options_copy(&s, given, own), -EINVAL);
        assert_int_equal(own[0], 9);
    }
}

#define REFUSED(name, call)                                                                        \
    do {                                                                                           \
        assert_int_equal(call, -EINVAL);                                                           \
        assert_string_equal(nibble_error(connection),                                              \
                            "the size of struct " name                                             \
                            " is not set: set it to sizeof(struct " name ")");                     \
    } while (0)

static void every_call_names_the_struct_without_its_size(void **state)
{
    struct nibble_load_options load = {.name = "m1"};
    struct nibble_session_options open = {.arena_bytes = 1 << 20};
    struct nibble_chat chat = {.messages_json = "[]"};
    struct nibble_prompt prompt = {.text = "a", .text_len = 1};
    struct nibble_generate_options generate = {.max_tokens = 1};
    struct nibble_matrix w = {.bits = 8, .rows = 1, .cols = 32};
    const struct nibble_embed_options embed = {.truncate = 1};
    const struct nibble_text text = {.text = "a", .text_len = 1};
    float row[32] = {0};
    const struct nibble_place place = {.data = row};
    nibble_session *other;
    nibble_job *job;
    REFUSED("nibble_load_options", nibble_load(connection, "/proc/self/exe", &load));
    REFUSED("nibble_session_options", nibble_session_open(connection, "m0", &open, &other));
    REFUSED("nibble_chat", nibble_render(session, &chat, NULL, 0, NULL, 0, NULL));
    REFUSED("nibble_prompt", nibble_generate(session, &prompt, NULL, NULL, NULL, &job));
    prompt = (struct nibble_prompt){.size = sizeof(prompt), .chat = &chat};
    REFUSED("nibble_chat", nibble_generate(session, &prompt, NULL, NULL, NULL, &job));
    REFUSED("nibble_generate_options",
            nibble_generate(session, &prompt, &generate, NULL, NULL, &job));
    REFUSED("nibble_embed_options", nibble_embed(session, &text, 1, &embed, &place, NULL));
    REFUSED("nibble_matrix",
            nibble_gemm(session, &w, &place, 1, &place, NIBBLE_PRECISION_FAST, NULL, NULL, &job));
    REFUSED("nibble_matrix", nibble_dequantize(session, &w, 0, 1, NIBBLE_NUMBER_F32, &place, NULL,
                                               NULL, NULL, &job));
}

// What a program that was built with a later header may set.
static void what_the_library_does_not_know_is_refused(void **state)
{
    struct {
        struct nibble_prompt known;
        uint64_t later;
    } prompt = {{.size = sizeof(prompt), .tokens = (int32_t[]){1}, .n_tokens = 1}, 1};
    nibble_job *job;
    assert_int_equal(nibble_generate(session, &prompt.known, NULL, NULL, NULL, &job), -E2BIG);
    assert_non_null(strstr(nibble_error(connection), "struct nibble_prompt has members set that "
                                                     "libnibble "));
    prompt.later = 0;
    assert_int_equal(nibble_generate(session, &prompt.known, NULL, NULL, NULL, &job), 0);
    nibble_job_free(job);
}

static void init_writes_no_more_than_the_caller_has(void **state)
{
    struct nibble_generate_options own;
    nibble_generate_options_init(&own, sizeof(own));
    assert_int_equal(own.size, sizeof(own));
    assert_true(own.sampling.top_p == 1 && own.sampling.repeat_penalty == 1);
    assert_int_equal(own.max_tokens, 0);
    // An older caller's, and a newer one's.
    for (size_t size = 40; size <= sizeof(own) + 16; size += sizeof(own) + 16 - 40) {
        unsigned char *theirs = at_the_end((uint32_t)size);
        nibble_generate_options_init((void *)theirs, size);
        uint32_t told;
        memcpy(&told, theirs, sizeof(told));
        assert_int_equal(told, size);
        assert_int_equal(theirs[size - 1], size == 40 ? ((unsigned char *)&own)[39] : 0);
    }
}

static void a_session_says_when_it_drafts(void **state)
{
    struct nibble_session_options open = {.size = sizeof(open), .drafts = NIBBLE_DRAFTS_ALWAYS + 1};
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", &open, &other), -EINVAL);
    assert_string_equal(nibble_error(connection), "drafts is 3: at most 2");
    open.size = offsetof(struct nibble_session_options, drafts); // as of before there were any
    assert_int_equal(nibble_session_open(connection, "m0", &open, &other), 0);
    nibble_session_close(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_older_callers_struct_is_read_to_its_end),
        cmocka_unit_test(a_newer_callers_struct_is_read_as_far_as_it_is_known),
        cmocka_unit_test(a_size_that_cannot_be_is_refused),
        CLIENT_TEST(every_call_names_the_struct_without_its_size),
        CLIENT_TEST(what_the_library_does_not_know_is_refused),
        CLIENT_TEST(a_session_says_when_it_drafts),
        cmocka_unit_test(init_writes_no_more_than_the_caller_has),
    };
    client_begin();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
