// JSON from a client to values, its strings the client's.
#pragma once

#include "engine/text/jinja/value.h"

#define NB_JINJA_JSON_DEPTH 128

// One JSON text (RFC 8259), checked whole: UTF-8, nothing after it. `data` must live as long as the
// arena. Fails as nb_jfail does, with the byte where it is wrong.
struct nb_jv nb_jjson_read(struct nb_jmem *m, const char *data, size_t len);
