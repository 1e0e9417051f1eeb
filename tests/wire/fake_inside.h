// What the two halves of the fake say to each other.
#pragma once

#include "tests/wire/fake.h"

void fake_violation(struct fake *fake, const char *what);

// The worker: one round of everything that it has to do. Returns whether there is more.
bool fake_work(struct fake *fake);

// The daemon
void fake_rebind(struct fake *fake, struct fake_channel *channel); // a new worker, with new memory
void fake_lose(struct fake_channel *channel);
void fake_drop_client(struct fake *fake, unsigned i);
