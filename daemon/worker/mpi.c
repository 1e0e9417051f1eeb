// `mpirun -n N nibble-mpi MODEL -o OUT.gguf --recipe R.json --text FILE...`: a distillation whose
// steps are shared by N processes, on one machine or several. Each has the model and the texts by
// the same paths. It is the service's kind "distill" without the service: what a broker would give
// the work lies in OUT.gguf.mpi/ beside rank 0's result, so the same command goes on after any end.
// The other ranks' files have no names, and end with them.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/worker/jobs.h"
#include "distill/train.h"
#include "libclient/wire.h"
#include "machine/clock.h"

#define TELL_NS UINT64_C(5000000000) // between two lines
#define SOME    (1 << 28)            // numbers of one call: counts are ints

struct asked {
    const char *model, *out, *recipe, *teacher;
    const char *texts[NB_WIRE_FILES];
    int n_texts;
    bool force;
};

static struct nb_train_share share;

static int failed(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int failed(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "error: process %u of %u: ", share.rank + 1, share.ranks);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return -1;
}

// --- What the work says and asks, which no broker hears

int nb_jobs_need(uint64_t bytes)
{
    (void)bytes; // the disk says when it is full
    return 0;
}

void nb_jobs_pace(struct nb_work *work, double operations)
{
    (void)work;
    (void)operations;
}

void nb_jobs_tell(struct nb_work *work, const char *what, uint64_t done, uint64_t total)
{
    const uint64_t now = nb_now_ns();
    if (share.rank || (work->told_ns && now - work->told_ns < TELL_NS && done < total))
        return;
    work->told_ns = now;
    fprintf(stderr, "%3.0f %%  %s\n", 100.0 * (double)done / (double)total, what);
}

// --- Sums: to rank 0 and from there to all, so that all have the same bits

static int sum(void *x, size_t n, size_t size, MPI_Datatype type)
{
    int rc = MPI_SUCCESS;
    for (size_t at = 0; at < n && rc == MPI_SUCCESS; at += SOME) {
        void *part = (char *)x + at * size;
        const int some = n - at < SOME ? (int)(n - at) : SOME;
        rc = MPI_Reduce(share.rank ? part : MPI_IN_PLACE, part, some, type, MPI_SUM, 0,
                        MPI_COMM_WORLD);
        if (rc == MPI_SUCCESS)
            rc = MPI_Bcast(part, some, type, 0, MPI_COMM_WORLD);
    }
    return rc == MPI_SUCCESS ? 0 : -EIO;
}

static int sum_floats(void *user, float *x, size_t n)
{
    (void)user;
    return sum(x, n, sizeof(*x), MPI_FLOAT);
}

static int sum_doubles(void *user, double *x, size_t n)
{
    (void)user;
    return sum(x, n, sizeof(*x), MPI_DOUBLE);
}

static int copy(void *user, void *data, size_t bytes)
{
    int rc = MPI_SUCCESS;
    (void)user;
    for (size_t at = 0; at < bytes && rc == MPI_SUCCESS; at += SOME)
        rc = MPI_Bcast((char *)data + at, bytes - at < SOME ? (int)(bytes - at) : SOME, MPI_BYTE, 0,
                       MPI_COMM_WORLD);
    return rc == MPI_SUCCESS ? 0 : -EIO;
}

// --- Files

static char *path_of(const struct asked *a, const char *name)
{
    char *path = NULL;
    if (asprintf(&path, "%s.mpi%s%s", a->out, *name ? "/" : "", name) < 0)
        abort();
    return path;
}

// Of rank 0 a file of the folder, of others one without a name beside it.
static int open_own(const struct asked *a, const char *name, int *ret)
{
    char *path = path_of(a, share.rank ? "" : name);
    const int how = share.rank ? O_TMPFILE : O_CREAT;
    *ret = open(path, O_RDWR | O_CLOEXEC | how, 0600);
    const int rc = *ret < 0 ? failed("%s: %s", path, strerror(errno)) : 0;
    free(path);
    return rc;
}

static int open_folder(const struct asked *a)
{
    char *path = path_of(a, "");
    struct stat st;
    int rc = 0;
    if (!a->force && stat(a->out, &st) == 0)
        rc = failed("%s exists: --force replaces it", a->out);
    else if (mkdir(path, 0777) < 0 && errno != EEXIST)
        rc = failed("%s: %s", path, strerror(errno));
    free(path);
    return rc;
}

static int open_results(const struct asked *a, struct nb_work *work)
{
    static const char *const names[] = {"journal", "model", "report", "scratch.0", "scratch.1"};
    int *const fds[] = {&work->journal, &work->results[0], &work->results[1], &work->scratch[0],
                        &work->scratch[1]};
    int rc = open_folder(a);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && rc == 0; i++)
        rc = open_own(a, names[i], fds[i]);
    if (rc == 0 && flock(work->journal, LOCK_EX | LOCK_NB) < 0)
        rc = failed("%s.mpi: another run of it is not over", a->out);
    return rc;
}

static int add_file(struct nb_work *work, const char *kind, const char *path)
{
    char *name = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return failed("%s: %s", path, strerror(errno));
    if (work->n_files == NB_WIRE_FILES)
        return failed("more than %d files", NB_WIRE_FILES);
    if (asprintf(&name, "%s%s", kind, path) < 0)
        abort();
    work->files[work->n_files++] = (struct nb_source_file){name, fd};
    return 0;
}

static int read_recipe(const struct asked *a, struct nb_work *work)
{
    FILE *file = fopen(a->recipe, "re");
    char *text = calloc(1, NB_JOB_RECIPE_MAX);
    work->recipe = text;
    if (!file || !text)
        return failed("%s: %s", a->recipe, strerror(errno));
    work->recipe_len = fread(text, 1, NB_JOB_RECIPE_MAX - 1, file);
    const bool whole = !ferror(file) && fgetc(file) == EOF;
    fclose(file);
    return whole ? 0
                 : failed("%s: a recipe has %d bytes at most", a->recipe, NB_JOB_RECIPE_MAX - 1);
}

// What a later run must have alike to go on.
static void make_key(struct nb_work *work)
{
    XXH128_canonical_t key;
    XXH3_state_t *hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    XXH3_128bits_update(hash, work->recipe, work->recipe_len + 1);
    for (uint32_t i = 0; i < work->n_files; i++) {
        struct stat st = {0};
        fstat(work->files[i].fd, &st);
        const int64_t is[] = {st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
        XXH3_128bits_update(hash, work->files[i].name, strlen(work->files[i].name) + 1);
        XXH3_128bits_update(hash, is, sizeof(is));
    }
    XXH128_canonicalFromHash(&key, XXH3_128bits_digest(hash));
    memcpy(work->key, &key, sizeof(work->key));
    XXH3_freeState(hash);
}

static int prepare(const struct asked *a, struct nb_work *work)
{
    int rc = read_recipe(a, work);
    if (rc == 0)
        rc = add_file(work, "", a->model);
    if (rc == 0 && a->teacher)
        rc = add_file(work, NB_JOB_TEACHER, a->teacher);
    for (int i = 0; i < a->n_texts && rc == 0; i++)
        rc = add_file(work, NB_JOB_CALIBRATION, a->texts[i]);
    // The folder is there before another rank looks for it.
    if (rc == 0 && share.rank)
        MPI_Barrier(MPI_COMM_WORLD);
    if (rc == 0)
        rc = open_results(a, work);
    if (rc == 0 && !share.rank)
        MPI_Barrier(MPI_COMM_WORLD);
    if (rc == 0)
        make_key(work);
    if (rc == 0 && (nb_cpu_allowed(&work->allowed) < 0 ||
                    nb_team_create(work->allowed.threads, &work->team) < 0))
        rc = failed("the threads cannot be started");
    work->statistics = -1;
    work->share = &share;
    return rc;
}

// The model gets its name, the report goes to stdout, and the folder's work is done.
static int deliver(const struct asked *a, const struct nb_work *work)
{
    static const char *const names[] = {"journal", "report", "scratch.0", "scratch.1"};
    char some[4096], *model = path_of(a, "model"), *folder = path_of(a, "");
    int rc = fsync(work->results[0]) < 0 || rename(model, a->out) < 0
                 ? failed("%s: %s", a->out, strerror(errno))
                 : 0;
    off_t at = 0;
    for (ssize_t n; rc == 0 && (n = pread(work->results[1], some, sizeof(some), at)) > 0; at += n)
        fwrite(some, 1, (size_t)n, stdout);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && rc == 0; i++) {
        char *path = path_of(a, names[i]);
        unlink(path);
        free(path);
    }
    if (rc == 0)
        rmdir(folder);
    free(folder);
    free(model);
    return rc;
}

// --- The command

static int usage(void)
{
    if (!share.rank)
        fprintf(stderr,
                "usage: mpirun -n N nibble-mpi MODEL -o OUT.gguf --recipe R.json --text FILE...\n"
                "       [--teacher FILE] [--force]: nibble distill, shared by N processes\n");
    return 2;
}

static int parse(int argc, char **argv, struct asked *ret)
{
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'}, {"recipe", required_argument, NULL, 'r'},
        {"text", required_argument, NULL, 't'},   {"teacher", required_argument, NULL, 'T'},
        {"force", no_argument, NULL, 'f'},        {0}};
    for (int c; (c = getopt_long(argc, argv, "o:r:t:f", options, NULL)) != -1;)
        switch (c) {
        case 'o':
            ret->out = optarg;
            break;
        case 'r':
            ret->recipe = optarg;
            break;
        case 'T':
            ret->teacher = optarg;
            break;
        case 'f':
            ret->force = true;
            break;
        case 't':
            if (ret->n_texts == NB_WIRE_FILES)
                return usage();
            ret->texts[ret->n_texts++] = optarg;
            break;
        default:
            return usage();
        }
    ret->model = optind + 1 == argc ? argv[optind] : NULL;
    return ret->model && ret->out && ret->recipe && ret->n_texts ? 0 : usage();
}

static int run(const struct asked *a)
{
    static struct nb_work work;
    struct nb_error error = {""};
    int rc = prepare(a, &work);
    if (rc == 0 && nb_jobs_distill(&work, &error) < 0)
        rc = failed("%s", error.text);
    if (rc == 0 && !share.rank)
        rc = deliver(a, &work);
    nb_team_destroy(work.team);
    return rc;
}

int main(int argc, char **argv)
{
    struct asked asked = {.model = NULL};
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    share = (struct nb_train_share){(uint32_t)rank, (uint32_t)ranks, NULL,
                                    sum_floats,     sum_doubles,     copy};
    const int status = parse(argc, argv, &asked);
    if (status == 0 && run(&asked) < 0)
        MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE); // the others wait for this one otherwise
    MPI_Finalize();
    return status;
}
