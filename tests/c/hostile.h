/* Calls that must be refused, each with its status, a message that names the culprit, and nothing written. */
#ifndef KRONSAE_TESTS_HOSTILE_H
#define KRONSAE_TESTS_HOSTILE_H

/* tiny: the path of tiny.safetensors. */
void hostile_arguments(const char *tiny);
void hostile_lifetimes(const char *tiny);
void hostile_fork(const char *tiny);
void hostile_exit(const char *tiny);

#endif
