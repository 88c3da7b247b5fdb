/* unit.h - what every unit test includes: cmocka in the order it wants, and TAP output. */
#ifndef HV_UNIT_H
#define HV_UNIT_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#define RUN(tests) (cmocka_set_message_output(CM_OUTPUT_TAP), cmocka_run_group_tests(tests, NULL, NULL))

#endif
