// cc gemm.c $(pkg-config --cflags --libs nibble) -lm -o gemm && ./gemm smol
// A 4-bit matrix in shared memory times two rows, on the device of a loaded model.
#include <math.h>
#include <nibble.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROWS = 100, COLS = 256, GROUP = 64, N = 2, CODES = ROWS * COLS / 2 };

int main(int argc, char **argv)
{
    nibble *connection = NULL;
    nibble_session *session;
    nibble_memory *memory;
    nibble_job *job;
    int fd;
    void *data;
    size_t bytes = CODES + ROWS * COLS / GROUP * sizeof(float);
    float x[N][COLS], y[N][ROWS];
    if (nibble_memory_create(bytes, &fd, &data) < 0)
        return 1;
    unsigned char *codes = data;
    float *scales = (float *)(codes + CODES);
    for (int i = 0; i < CODES; i++)
        codes[i] = (unsigned char)(i * 37);
    for (int i = 0; i < ROWS * COLS / GROUP; i++)
        scales[i] = 0.01f * (float)(1 + i % 5);
    for (int i = 0; i < N * COLS; i++)
        x[i / COLS][i % COLS] = sinf((float)i);

    struct nibble_matrix w = {
        .size = sizeof(w), .bits = 4, .group = GROUP, .rows = ROWS, .cols = COLS};
    struct nibble_place from = {.data = x}, to = {.data = y};
    if (nibble_connect(NULL, &connection) < 0 ||
        nibble_session_open(connection, argc > 1 ? argv[1] : "smol", NULL, &session) < 0 ||
        nibble_memory_register(session, fd, 0, bytes, NIBBLE_MEMORY_READ_ONLY, &memory) < 0)
        goto failed;
    w.codes.memory = w.scales.memory = memory;
    w.scales.offset = CODES;
    if (nibble_gemm(session, &w, &from, N, &to, NIBBLE_PRECISION_EXACT, NULL, NULL, &job) < 0 ||
        nibble_job_wait(job) < 0)
        goto failed;

    double error = 0, largest = 0; // beside the same in double
    for (int t = 0; t < N; t++)
        for (int r = 0; r < ROWS; r++) {
            double sum = 0;
            for (int k = 0; k < COLS; k++) {
                int i = r * COLS + k, code = codes[i / 2] >> (i % 2 * 4) & 15;
                sum += (double)x[t][k] * scales[i / GROUP] * (code - 8);
            }
            error = fmax(error, fabs(y[t][r] - sum));
            largest = fmax(largest, fabs(sum));
        }
    printf("%d x %d on %s: y[0][0] = %.6f, at most %.1e of the largest off\n", ROWS, COLS,
           nibble_session_model(session)->device, (double)y[0][0], error / largest);
    nibble_close(connection);
    munmap(data, bytes);
    close(fd);
    return error > 1e-4 * largest;
failed:
    fprintf(stderr, "gemm: %s\n", nibble_error(connection));
    return 1;
}
