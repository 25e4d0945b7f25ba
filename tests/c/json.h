/* Whether a text is one JSON value and nothing else (RFC 8259), for what the library writes. */
#ifndef KRONSAE_TESTS_JSON_H
#define KRONSAE_TESTS_JSON_H

#include <ctype.h>
#include <string.h>

static const char *json_space(const char *at) { return at + strspn(at, " \t\r\n"); }

static const char *json_string(const char *at) {
    if (*at++ != '"') return NULL;
    for (; *at != '"'; at++) {
        if ((unsigned char)*at < 0x20) return NULL;
        if (*at != '\\') continue;
        at++;
        if (*at == 'u') {
            int i;
            for (i = 0; i < 4; i++) {
                if (!isxdigit((unsigned char)*++at)) return NULL;
            }
        } else if (*at == '\0' || strchr("\"\\/bfnrt", *at) == NULL) {
            return NULL;
        }
    }
    return at + 1;
}

static const char *json_number(const char *at) {
    size_t digits;
    if (*at == '-') at++;
    digits = strspn(at, "0123456789");
    if (digits == 0 || (digits > 1 && *at == '0')) return NULL;
    at += digits;
    if (*at == '.') {
        digits = strspn(++at, "0123456789");
        if (digits == 0) return NULL;
        at += digits;
    }
    if (*at == 'e' || *at == 'E') {
        at++;
        if (*at == '+' || *at == '-') at++;
        digits = strspn(at, "0123456789");
        if (digits == 0) return NULL;
        at += digits;
    }
    return at;
}

/* The end of the value at `at`, or NULL. */
static const char *json_value(const char *at, int depth) {
    static const char *const words[3] = {"null", "true", "false"};
    size_t i;
    if (depth > 64) return NULL;
    at = json_space(at);
    if (*at == '"') return json_string(at);
    if (*at == '{' || *at == '[') {
        const char open = *at, close = open == '{' ? '}' : ']';
        at = json_space(at + 1);
        if (*at == close) return at + 1;
        for (;;) {
            if (open == '{') {
                at = json_string(json_space(at));
                if (at == NULL) return NULL;
                at = json_space(at);
                if (*at++ != ':') return NULL;
            }
            at = json_value(at, depth + 1);
            if (at == NULL) return NULL;
            at = json_space(at);
            if (*at == close) return at + 1;
            if (*at++ != ',') return NULL;
        }
    }
    for (i = 0; i < 3; i++) {
        if (strncmp(at, words[i], strlen(words[i])) == 0) return at + strlen(words[i]);
    }
    return json_number(at);
}

static int is_json(const char *text) {
    const char *end = json_value(text, 0);
    return end != NULL && *json_space(end) == '\0';
}

#endif
