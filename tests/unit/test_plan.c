/* Plans: placement over random rows, budget, faults; arenas on the cpu and the dry device. */
#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem/arena.h"
#include "mem/budget.h"
#include "mem/plan.h"
#include "ops/ops.h"

static uint32_t next(uint32_t *s)
{
    return *s = *s * 1664525u + 1013904223u;
}

static void rows_alive_together_never_overlap(void **state)
{
    static char names[HV_PLAN_ROWS][8];
    uint32_t seed = 1;

    (void)state;
    for (int round = 0; round < 200; round++) {
        struct hv_plan p = {0}, again = {0};
        struct hv_err e = {0};
        const int n = 1 + (int)(next(&seed) >> 8) % HV_PLAN_ROWS;
        size_t floor = 0;
        for (int i = 0; i < n; i++) {
            const int64_t size = (next(&seed) >> 8) % 5000;
            const uint32_t phases = 1 + (next(&seed) >> 8) % 31;
            snprintf(names[i], sizeof names[i], "r%d", i);
            hv_plan_add(&p, names[i], HV_F32, phases, 1, &size);
            hv_plan_add(&again, names[i], HV_F32, phases, 1, &size);
        }
        assert_int_equal(hv_plan_place(&p, &e) | hv_plan_place(&again, &e), 0);
        for (int i = 0; i < n; i++) {
            assert_int_equal(p.row[i].offset % HV_ALIGN, 0);
            assert_int_equal(p.row[i].offset, again.row[i].offset);
            assert_true(p.row[i].offset + p.row[i].bytes <= hv_plan_bytes(&p));
            for (int k = 0; k < i; k++)
                if (p.row[i].phases & p.row[k].phases)
                    assert_true(p.row[i].offset + p.row[i].bytes <= p.row[k].offset ||
                                p.row[k].offset + p.row[k].bytes <= p.row[i].offset);
        }
        for (int phase = 0; phase < 5; phase++) {           /* no plan is below the sum of a phase */
            size_t sum = 0;
            for (int i = 0; i < n; i++)
                sum += p.row[i].phases >> phase & 1 ? p.row[i].bytes : 0;
            floor = sum > floor ? sum : floor;
        }
        assert_true(hv_plan_bytes(&p) >= floor);
    }
}

static void rows_that_never_meet_share_bytes(void **state)
{
    struct hv_plan p = {0};
    struct hv_err e = {0};

    (void)state;
    hv_plan_add(&p, "x", HV_BF16, 3, 2, (int64_t[]){1024, 128});
    hv_plan_add(&p, "k", HV_BF16, 1, 2, (int64_t[]){512, 128});
    hv_plan_add(&p, "hidden", HV_BF16, 2, 2, (int64_t[]){512, 128});
    assert_int_equal(hv_plan_place(&p, &e), 0);
    assert_int_equal(p.row[1].offset, p.row[2].offset);
    assert_int_equal(hv_plan_bytes(&p), 1024 * 128 * 2 + 512 * 128 * 2);
}

static void a_budget_names_the_largest(void **state)
{
    struct hv_plan p = {.budget = 1 << 20};
    struct hv_err e = {0};

    (void)state;
    hv_plan_add(&p, "x", HV_F32, 1, 1, (int64_t[]){1 << 20});
    hv_plan_add(&p, "small", HV_F32, 1, 1, (int64_t[]){1});
    assert_int_equal(hv_plan_place(&p, &e), HV_ENOMEM);
    assert_string_equal(e.msg, "plan: needs 4.0 MiB, budget 1.0 MiB; largest: x 4, small 0");
}

static void faults(void **state)
{
    struct hv_plan twice = {0}, huge = {0}, many = {0};
    struct hv_err a = {0}, b = {0}, c = {0};
    static char names[HV_PLAN_ROWS + 1][8];

    (void)state;
    hv_plan_add(&twice, "x", HV_F32, 1, 1, (int64_t[]){1});
    hv_plan_add(&twice, "x", HV_F32, 1, 1, (int64_t[]){1});
    assert_int_equal(hv_plan_place(&twice, &a), HV_EINPUT);
    hv_plan_add(&huge, "x", HV_F32, 1, 2, (int64_t[]){INT64_MAX / 2, 3});
    assert_int_equal(hv_plan_place(&huge, &b), HV_EINPUT);
    for (int i = 0; i <= HV_PLAN_ROWS; i++) {
        snprintf(names[i], sizeof names[i], "r%d", i);
        hv_plan_add(&many, names[i], HV_F32, 1, 1, (int64_t[]){1});
    }
    assert_int_equal(hv_plan_place(&many, &c), HV_EINPUT);
}

static void an_arena_realises_a_plan(void **state)
{
    struct hv_plan p = {0};
    struct hv_err e = {0};

    (void)state;
    hv_plan_add(&p, "x", HV_F32, 1, 2, (int64_t[]){3, 5});
    hv_plan_add(&p, "y", HV_F32, 1, 2, (int64_t[]){3, 5});
    hv_plan_add(&p, "none", HV_F32, 1, 1, (int64_t[]){0});
    assert_int_equal(hv_plan_place(&p, &e), 0);
    for (int dry = 0; dry < 2; dry++) {
        struct hv_dev *d = NULL;
        struct hv_arena *a = NULL;
        assert_int_equal(hv_dev_open(&d, dry ? "dry" : "cpu", 1, &e), 0);
        assert_int_equal(hv_arena_open(&a, d, &p, &e), 0);
        const hv_tensor x = hv_arena_row(a, "x"), y = hv_arena_row(a, "y");
        assert_int_equal(x.dev, dry ? HV_DRY : HV_HOST);
        hv_fill(d, x, 2);
        hv_copy(d, y, x);
        if (dry)
            assert_null(x.data);
        else
            assert_true(((float *)y.data)[14] == 2);
        assert_int_equal(hv_dev_sync(d, &e), 0);
        assert_int_equal(d->count.launches, 2);
        hv_arena_close(a);
        hv_dev_close(d);
    }
}

static void an_arena_in_memory_that_is_there(void **state)
{
    static char memory[4096] __attribute__((aligned(256)));
    struct hv_plan p = {0};
    struct hv_err e = {0};
    struct hv_dev *d = NULL;
    struct hv_arena *a = NULL;

    (void)state;
    hv_plan_add(&p, "x", HV_F32, 1, 1, (int64_t[]){100});
    assert_int_equal(hv_plan_place(&p, &e) | hv_dev_open(&d, "cpu", 1, &e), 0);
    struct hv_room room = {.act = HV_F32, .memory = hv_view(memory, HV_BYTES, 1, (int64_t[]){sizeof memory})};
    assert_int_equal(hv_arena_open_in(&a, d, &p, &room, &e), 0);
    assert_ptr_equal(hv_arena_row(a, "x").data, memory);
    hv_arena_close(a);
    room.memory = hv_rows(room.memory, 0, 256);
    assert_int_equal(hv_arena_open_in(&a, d, &p, &room, &e), HV_EINPUT);
    assert_null(a);
    hv_dev_close(d);
}

static void a_budget_counts_the_context(void **state)
{
    const uint64_t mib = 1 << 20;
    const struct hv_dev_info free_4g = {.free = 4096 * mib, .context = 500 * mib}, later = {.free = 3000 * mib};
    const struct hv_size none = {0}, two = {.kind = HV_SIZE_BYTES, .bytes = 2048 * mib}, half = {.kind = HV_SIZE_PERCENT, .percent = 50};
    struct hv_err e = {0};
    size_t budget = 1;

    (void)state;
    assert_int_equal(hv_budget_device(&budget, &none, 500 * mib, NULL, &e), 0);
    assert_int_equal(budget, 0);
    assert_int_equal(hv_budget_device(&budget, &two, 500 * mib, NULL, &e), 0);
    assert_int_equal(budget, 1548 * mib);
    assert_int_equal(hv_budget_device(&budget, &none, 500 * mib, &free_4g, &e), 0);
    assert_int_equal(budget, (4096 - 512) * mib);
    assert_int_equal(hv_budget_device(&budget, &half, 500 * mib, &free_4g, &e), 0);
    assert_int_equal(budget, (4596 / 2 - 500) * mib);
    assert_int_equal(hv_budget_device(&budget, &two, 500 * mib, &later, &e), 0);
    assert_int_equal(hv_budget_device(&budget, &half, 500 * mib, NULL, &e), HV_EUSAGE);
    e = (struct hv_err){0};
    assert_int_equal(hv_budget_device(&budget, &two, 2048 * mib, NULL, &e), HV_ENOMEM);
    assert_int_equal(hv_budget_taken(527 * mib, &free_4g, &later), (500 + 1096) * mib);
}

static void a_wrong_shape_is_a_sticky_fault(void **state)
{
    struct hv_dev *d = NULL;
    struct hv_err e = {0};
    float data[32] = {0};
    const hv_tensor x = hv_view(data, HV_F32, 2, (int64_t[]){4, 8}), w = hv_view(data, HV_F32, 2, (int64_t[]){4, 7});

    (void)state;
    assert_int_equal(hv_dev_open(&d, "cpu", 1, &e), 0);
    hv_linear(d, x, x, w, HV_NO, HV_ACT_NONE);
    hv_fill(d, x, 1);                                       /* returns at once */
    assert_int_equal(d->count.launches, 0);
    assert_int_equal(hv_dev_sync(d, &e), HV_EDEVICE);
    assert_string_equal(e.msg, "linear: shapes, dtypes or device do not fit: F32[4,8] F32[4,8] F32[4,7]");
    hv_dev_close(d);
}

static void unknown_devices(void **state)
{
    const struct { const char *name; int code; } bad[] = {
        {"gpu", HV_EUSAGE}, {"cuda:x", HV_EUSAGE}, {"cpu:1", HV_EUSAGE}, {"dry:2", HV_EUSAGE}, {"", HV_EUSAGE},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_dev *d = NULL;
        struct hv_err e = {0};
        assert_int_equal(hv_dev_open(&d, bad[i].name, 1, &e), bad[i].code);
        assert_null(d);
    }
}

static void printing(void **state)
{
    struct hv_plan p = {0};
    struct hv_err e = {0};
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    (void)state;
    hv_plan_add(&p, "x", HV_BF16, 3, 2, (int64_t[]){1024, 512});
    assert_int_equal(hv_plan_place(&p, &e), 0);
    hv_plan_print(&p, NULL, f);
    hv_plan_print_json(&p, NULL, f);
    fclose(f);
    assert_non_null(strstr(text, "x                BF16     [1024,512]               0x3                     0          1.0"));
    assert_non_null(strstr(text, "\"peak_bytes\": 1048576}"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_alive_together_never_overlap), cmocka_unit_test(rows_that_never_meet_share_bytes),
        cmocka_unit_test(a_budget_names_the_largest), cmocka_unit_test(faults), cmocka_unit_test(an_arena_realises_a_plan),
        cmocka_unit_test(an_arena_in_memory_that_is_there), cmocka_unit_test(a_budget_counts_the_context),
        cmocka_unit_test(a_wrong_shape_is_a_sticky_fault), cmocka_unit_test(unknown_devices), cmocka_unit_test(printing),
    };
    return RUN(tests);
}
