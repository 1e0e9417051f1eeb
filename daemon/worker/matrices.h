// Matrix jobs: the GEMMs and dequantizations that clients ask for beside a model's streams. A
// channel's jobs run one after the other, each in slices of about a step's length; between two
// steps of the models runs one slice of one channel.
#pragma once

#include <stdint.h>

struct nb_channel;
struct nb_job;
struct nb_serve;
struct nb_matrix_job;

void nb_matrix_job_destroy(struct nb_matrix_job *work); // NULL is fine
// Drops the packed copies of matrices that lie in the region, or all with 0. No job may use them.
void nb_packed_matrices_drop(struct nb_channel *c, uint32_t region);
// Cancels the jobs that use the region, then unmaps it. One that is not there is fine.
void nb_matrices_forget(struct nb_channel *c, uint32_t region);
// Runs the next slice. 1: something ran, 0: there is nothing to run, or negative: the device is
// lost.
int nb_matrices_run(struct nb_serve *s);
