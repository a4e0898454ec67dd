;; A guest in its smallest form: gives back the message it was given.
;; `echo.wasm` beside it is this text, assembled; a test holds the two together.
(module
  (import "blackhole" "log" (func $log (param i32 i32 i32)))
  (import "blackhole" "status" (func $status (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "/demo.v1.WasmEcho/Say")
  (data (i32.const 64) "said it back")
  (data (i32.const 128) "there is no such method")
  ;; Memory is given out upwards from here; every call has its own.
  (global $next (mut i32) (i32.const 1024))

  (func (export "bh_alloc") (param $length i32) (result i32)
    (local $at i32) (local $pages i32)
    (local.set $at (global.get $next))
    (global.set $next (i32.add (local.get $at) (local.get $length)))
    ;; Pages up to $next, rounded up, less those that are there.
    (local.set $pages
      (i32.sub
        (i32.shr_u (i32.add (global.get $next) (i32.const 65535)) (i32.const 16))
        (memory.size)))
    (if (i32.gt_s (local.get $pages) (i32.const 0))
      (then
        (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1))
          (then unreachable))))
    (local.get $at))

  (func $is_say (param $at i32) (param $length i32) (result i32)
    (local $i i32)
    (if (i32.ne (local.get $length) (i32.const 21)) (then (return (i32.const 0))))
    (loop $each
      (if (i32.ne
            (i32.load8_u (local.get $i))
            (i32.load8_u (i32.add (local.get $at) (local.get $i))))
        (then (return (i32.const 0))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $each (i32.lt_u (local.get $i) (i32.const 21))))
    (i32.const 1))

  (func (export "bh_call")
    (param $method i32) (param $method_length i32) (param $at i32) (param $length i32)
    (result i64)
    (if (i32.eqz (call $is_say (local.get $method) (local.get $method_length)))
      (then
        (call $status (i32.const 128) (i32.const 23))
        (return (i64.const -12))))
    (call $log (i32.const 4) (i32.const 64) (i32.const 12))
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $length)))))
