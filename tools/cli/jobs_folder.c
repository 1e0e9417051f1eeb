// A job's result that is a Hugging Face folder: its small files come in one file of JSON.
#include <string.h>
#include <unistd.h>

#include "tools/cli/folder.h"
#include "tools/cli/jobs.h"

bool jobs_is_folder(nibble *connection, uint64_t job)
{
    struct nibble_jobs_result info;
    int fd;
    if (nibble_jobs_result(connection, job, JOBS_MODEL, &fd, &info) < 0)
        return false;
    close(fd);
    return !strcmp(info.name, "model.safetensors");
}

static int save_tensors(nibble *connection, uint64_t job, struct folder *f, const char *name)
{
    int to;
    int status = folder_create(f, name, &to);
    return status == CLI_OK
               ? folder_end(f, name, to, jobs_copy(connection, job, JOBS_MODEL, name, to))
               : status;
}

int jobs_save_folder(nibble *connection, uint64_t job, const char *out)
{
    struct folder *f = NULL;
    const char *name;
    json_t *text, *list = jobs_json(connection, job, JOBS_TEXTS);
    const char *tensors = json_string_value(json_object_get(list, "tensors"));
    int status =
        tensors ? folder_open(out, &f) : cli_error("the job's list of files cannot be read");
    if (status == CLI_OK) {
        json_object_foreach(json_object_get(list, "texts"), name, text) {
            if (status == CLI_OK)
                status = folder_put(f, name, json_string_value(text), json_string_length(text));
        }
        if (status == CLI_OK)
            status = save_tensors(connection, job, f, tensors);
        status = folder_close(f, out, status);
    }
    json_decref(list);
    return status;
}
