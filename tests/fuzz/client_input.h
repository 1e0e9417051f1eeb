// fuzz_client's input: records, each a packet from the daemon with the memory that may go with it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLIENT_INPUT_FDS 5 // one more than a packet may have

struct client_record { // followed by the packet and the memory's completions
    uint16_t packet_size, memory_size;
    uint32_t n_fds; // modulo 6; the first is the memory, the others sockets
    uint32_t cq_tail;
};

void write_client_seeds(const char *dir);
