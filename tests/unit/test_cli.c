/* Options and sizes. */
#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

#include "core/cli.h"

static struct {
    struct hv_common c;
    int64_t steps;
    double shift;
    const char *plan, *face;
    int exif;
    struct hv_strs voices;
    struct hv_size vram;
} o;

static const struct hv_opt opts[] = {
    {"steps", 0, HV_OPT_INT, &o.steps, "N", "steps", 1, 1000},
    {"shift", 's', HV_OPT_REAL, &o.shift, "X", "shift", 0, 100},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "plan", 0, 0},
    {"face", 'f', HV_OPT_STR, &o.face, "WHICH", "face", 0, 0},
    {"no-exif", 0, HV_OPT_FLAG, &o.exif, NULL, "no exif", 0, 0},
    {"voice", 0, HV_OPT_LIST, &o.voices, "A", "voice", 0, 0},
    {"vram", 0, HV_OPT_SIZE, &o.vram, "SIZE", "budget", 0, 0},
    {0},
};
static const struct hv_cli cli = {"hv-x", "FILE...", "Tests.", opts, &o.c, 1, 3};

static int parse(struct hv_err *e, const char *line)
{
    static char buf[512];
    static char *argv[32];
    int argc = 0;

    memset(&o, 0, sizeof o);
    *e = (struct hv_err){0};
    strcpy(buf, line);
    argv[argc++] = "hv-x";
    for (char *w = strtok(buf, " "); w; w = strtok(NULL, " "))
        argv[argc++] = w;
    argv[argc] = NULL;
    return hv_cli_parse(&cli, argc, argv, e);
}

static void all_kinds(void **state)
{
    struct hv_err e;

    (void)state;
    assert_int_equal(parse(&e, "a --steps=20 -s 2.5 b --plan --face -1 --no-exif --voice x --voice=y -o out -qv --vram 4G"), 0);
    assert_int_equal(o.steps, 20);
    assert_true(o.shift == 2.5);
    assert_string_equal(o.plan, "");
    assert_string_equal(o.face, "-1");
    assert_int_equal(o.exif + o.c.quiet + o.c.verbose, 3);
    assert_int_equal(o.voices.n, 2);
    assert_string_equal(o.c.output, "out");
    assert_string_equal(o.c.device, "cpu");
    assert_int_equal(o.c.n_operands, 2);
    assert_string_equal(o.c.operand[1], "b");
    assert_int_equal(hv_size_bytes(&o.vram, 1), (uint64_t)4 << 30);
    assert_int_equal(parse(&e, "a --plan=json"), 0);
    assert_string_equal(o.plan, "json");
    assert_int_equal(parse(&e, "-- --steps"), 0);
    assert_string_equal(o.c.operand[0], "--steps");
    assert_int_equal(parse(&e, "-"), 0);
}

static void refusals(void **state)
{
    const char *bad[] = {"", "a b c d", "a --steps 0", "a --steps 1001", "a --steps x", "a --steps 1x", "a --steps", "a --shift nan",
                         "a --shift 1e999", "a --nonsense", "a -z", "a --vram x", "a --vram 0%", "a --vram 120%", "a --vram 1X",
                         "a --progress loud", "a --no-exif=1", "a --threads 5000", "a --threads 99999999999999999999"};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_err e;
        assert_int_equal(parse(&e, bad[i]), HV_EUSAGE);
        assert_true(e.msg[0]);
    }
}

static void sizes(void **state)
{
    struct hv_size s;
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(hv_size_parse(&s, "512M", &e), 0);
    assert_int_equal(hv_size_bytes(&s, 0), 512 << 20);
    assert_int_equal(hv_size_parse(&s, "1.5GiB", &e), 0);
    assert_int_equal(hv_size_bytes(&s, 0), (uint64_t)3 << 29);
    assert_int_equal(hv_size_parse(&s, "90%", &e), 0);
    assert_int_equal(hv_size_bytes(&s, 1000), 900);
    assert_int_equal(hv_size_parse(&s, "-1G", &e), 0);
    assert_int_equal(hv_size_bytes(&s, (uint64_t)3 << 30), (uint64_t)2 << 30);
    assert_int_equal(hv_size_bytes(&s, 5), 0);
    s = (struct hv_size){0};
    assert_int_equal(hv_size_bytes(&s, 77), 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_kinds), cmocka_unit_test(refusals), cmocka_unit_test(sizes)};

    unsetenv("HV_MODEL");
    return RUN(tests);
}
