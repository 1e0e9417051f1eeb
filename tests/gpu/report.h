// The report: everything as JSON, and a page of what matters as Markdown.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

// Writes report.json and report.md in the folder, each whole or not at all.
void gpu_report_write(const json_t *root, const char *folder);
// One line: how many parts passed, failed, were skipped, did not finish. True when none failed and
// all that began have finished.
bool gpu_report_sum(const json_t *root, FILE *to);
