// The ranges of a draw's options. What they do is the engine's matter.
#include "libclient/sampling.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>

int nb_sampling_fault(const struct nibble_sampling *s, char *ret_sentence, size_t size)
{
    const struct {
        const char *name;
        double value, least, most;
        bool above; // the least itself is none
        const char *off;
    } members[] = {
        {"temperature", s->temperature, 0, 100, false, "0 is greedy"},
        {"top_p", s->top_p, 0, 1, true, "1 is off"},
        {"min_p", s->min_p, 0, 1, false, "0 is off"},
        {"repeat_penalty", s->repeat_penalty, 0, 100, true, "1 is off"},
        {"repeat_window", s->repeat_window, 0, NB_SAMPLING_WINDOW_MAX, false, "0 is off"},
    };
    for (size_t i = 0; i < sizeof(members) / sizeof(*members); i++) {
        double value = members[i].value, least = members[i].least;
        bool enough = members[i].above ? value > least : value >= least; // false of a NaN
        if (enough && value <= members[i].most)
            continue;
        snprintf(ret_sentence, size, "%s is %g: %s%g to %g (%s)", members[i].name, value,
                 members[i].above ? "above " : "", least, members[i].most, members[i].off);
        return -EINVAL;
    }
    return 0;
}
