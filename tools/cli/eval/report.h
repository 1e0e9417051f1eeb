// What eval found, for people: tables on stdout, and a folder with a report.
#pragma once

#include <jansson.h>

// `found` is {"method", "reference", "models": [...]}; each table has a row for each of its parts.
// An exit status.
int report_print(const json_t *found);
// Writes report.md, report.json and charts as SVG and PNG into the folder, which is made where it
// is missing, and sets "charts" of `found`. An exit status.
int report_write(json_t *found, const char *folder);
