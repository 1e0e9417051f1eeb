// What the writers of seeds share.
#pragma once

void seed_check(int rc, const char *what); // ends the program with a sentence where r is below 0
int seed_create(const char *dir, const char *target, const char *name); // the fd of a new file

void write_folder_seeds(const char *dir);
void write_hf_seeds(const char *dir);
void write_plan_seeds(const char *dir);
void write_lessons_seeds(const char *dir);
void write_template_seeds(const char *dir);
