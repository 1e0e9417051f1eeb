// The charts of a report: quality against size.
#pragma once

#include <jansson.h>

// Writes each chart that `found` has figures for to FOLDER/NAME.svg and .png, and appends to
// `charts` what it is: its name, its title, and where its plot lies (chart.h). An exit status.
int charts_write(const json_t *found, const char *folder, json_t *charts);
