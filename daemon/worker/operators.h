// The operators that clients ask for beside a model's streams: products and dequantization. Their
// jobs run one after the other in each channel, in turns of about a step's length, one turn of one
// channel between two steps.
#pragma once

#include <stdint.h>

struct nb_channel;
struct nb_job;
struct nb_serve;
struct nb_work; // what a job of an operator has to do
struct nb_kept; // a matrix of constant memory, packed once

void nb_work_destroy(struct nb_work *work); // NULL is fine
// Drops the packed matrices that lie in the region, or all with 0. No job may use them.
void nb_kept_drop(struct nb_channel *c, uint32_t region);
// Cancels the jobs that use the region, then unmaps it. One that is not there is fine.
void nb_operators_forget(struct nb_channel *c, uint32_t region);
// 1: something ran, 0: there is nothing to run, or negative: the device is lost.
int nb_operators_turn(struct nb_serve *s);
