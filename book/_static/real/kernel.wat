;; Products with a matrix W (m rows of k numbers) that stays in memory as it came: in the GGUF file's blocks of 32.
;;   forward    y = x Wᵀ, x is n × k and y is n × m: rows j0 ≤ j < j1 of W
;;   backward   dx += dy W, dy is n × m and dx is n × k: of each row of W, blocks b0 ≤ b < b1
;; A few rows of W are unpacked to 32-bit floats at `scratch`, which the processor's cache holds, and meet all rows of x.
;; Where there are threads, each has its own part of W and its own scratch. MEMORY is replaced when this is compiled.
(module
  (import "env" "memory" (memory MEMORY))

  ;; A number of 16 bits (half precision) at an address: its bits shifted are the same number times 2^-112.
  (func $half (param $at i32) (result f32) (local $h i32)
    (local.set $h (i32.load16_u (local.get $at)))
    (f32.reinterpret_i32 (i32.or (i32.shl (i32.and (local.get $h) (i32.const 0x8000)) (i32.const 16))
      (i32.reinterpret_f32 (f32.mul (f32.const 0x1p112)
        (f32.reinterpret_i32 (i32.shl (i32.and (local.get $h) (i32.const 0x7fff)) (i32.const 13))))))))

  ;; One sum of the four numbers of a vector.
  (func $sum (param $v v128) (result f32)
    (f32.add
      (f32.add (f32x4.extract_lane 0 (local.get $v)) (f32x4.extract_lane 1 (local.get $v)))
      (f32.add (f32x4.extract_lane 2 (local.get $v)) (f32x4.extract_lane 3 (local.get $v)))))

  ;; So many blocks as floats. Of 20 bytes (Q4_1: d, m, 32 numbers of 4 bits; w = d·q + m) or of 34 (Q8_0: d, 32 bytes).
  (func $unpack (export "unpack") (param $q i32) (param $bytes i32) (param $blocks i32) (param $out i32)
    (local $d v128) (local $m v128) (local $a v128) (local $b v128) (local $s v128)
    (loop $block
      (local.set $d (f32x4.splat (call $half (local.get $q))))
      (if (i32.eq (local.get $bytes) (i32.const 20))
        (then
          (local.set $m (f32x4.splat (call $half (i32.add (local.get $q) (i32.const 2)))))
          (local.set $b (v128.load offset=4 (local.get $q)))
          (local.set $a (v128.and (local.get $b) (i8x16.splat (i32.const 15))))
          (local.set $b (i8x16.shr_u (local.get $b) (i32.const 4))))
        (else
          (local.set $m (v128.const i32x4 0 0 0 0))
          (local.set $a (v128.load offset=2 (local.get $q)))
          (local.set $b (v128.load offset=18 (local.get $q)))))
      (local.set $s (i16x8.extend_low_i8x16_s (local.get $a)))
      (v128.store (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $s))))))
      (v128.store offset=16 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $s))))))
      (local.set $s (i16x8.extend_high_i8x16_s (local.get $a)))
      (v128.store offset=32 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $s))))))
      (v128.store offset=48 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $s))))))
      (local.set $s (i16x8.extend_low_i8x16_s (local.get $b)))
      (v128.store offset=64 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $s))))))
      (v128.store offset=80 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $s))))))
      (local.set $s (i16x8.extend_high_i8x16_s (local.get $b)))
      (v128.store offset=96 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_low_i16x8_s (local.get $s))))))
      (v128.store offset=112 (local.get $out) (f32x4.add (local.get $m) (f32x4.mul (local.get $d)
        (f32x4.convert_i32x4_s (i32x4.extend_high_i16x8_s (local.get $s))))))
      (local.set $q (i32.add (local.get $q) (local.get $bytes)))
      (local.set $out (i32.add (local.get $out) (i32.const 128)))
      (br_if $block (local.tee $blocks (i32.sub (local.get $blocks) (i32.const 1))))))

  ;; Four rows of W at a time; two rows of x meet them in eight sums, the last one of an odd number in four.
  (func (export "forward")
    (param $q i32) (param $bytes i32) (param $x i32) (param $n i32) (param $k i32)
    (param $j0 i32) (param $j1 i32) (param $y i32) (param $m i32) (param $scratch i32)
    (local $row i32) (local $long i32) (local $i i32) (local $t i32) (local $w i32) (local $xa i32) (local $xb i32)
    (local $to i32) (local $u v128) (local $v v128) (local $z v128)
    (local $a0 v128) (local $a1 v128) (local $a2 v128) (local $a3 v128)
    (local $b0 v128) (local $b1 v128) (local $b2 v128) (local $b3 v128)
    (local.set $long (i32.shl (local.get $k) (i32.const 2)))                                ;; bytes of a row of x
    (local.set $row (i32.mul (local.get $bytes) (i32.shr_u (local.get $k) (i32.const 5))))  ;; bytes of a row of W
    (local.set $q (i32.add (local.get $q) (i32.mul (local.get $j0) (local.get $row))))
    (loop $rows
      (call $unpack (local.get $q) (local.get $bytes) (i32.shr_u (local.get $k) (i32.const 3)) (local.get $scratch))
      (local.set $xa (local.get $x))
      (local.set $to (i32.add (local.get $y) (i32.shl (local.get $j0) (i32.const 2))))
      (local.set $i (local.get $n))
      (loop $pairs
        (local.set $xb (i32.add (local.get $xa)
          (select (local.get $long) (i32.const 0) (i32.gt_u (local.get $i) (i32.const 1)))))
        (local.set $w (local.get $scratch))
        (local.set $a0 (local.get $z)) (local.set $a1 (local.get $z))
        (local.set $a2 (local.get $z)) (local.set $a3 (local.get $z))
        (local.set $t (local.get $k))
        (if (i32.eq (local.get $i) (i32.const 1))
          (then
            (loop $one
              (local.set $u (v128.load (local.get $xa)))
              (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $u) (v128.load (local.get $w)))))
              (local.set $to (i32.add (local.get $w) (local.get $long)))
              (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $u) (v128.load (local.get $to)))))
              (local.set $to (i32.add (local.get $to) (local.get $long)))
              (local.set $a2 (f32x4.add (local.get $a2) (f32x4.mul (local.get $u) (v128.load (local.get $to)))))
              (local.set $to (i32.add (local.get $to) (local.get $long)))
              (local.set $a3 (f32x4.add (local.get $a3) (f32x4.mul (local.get $u) (v128.load (local.get $to)))))
              (local.set $w (i32.add (local.get $w) (i32.const 16)))
              (local.set $xa (i32.add (local.get $xa) (i32.const 16)))
              (br_if $one (local.tee $t (i32.sub (local.get $t) (i32.const 4)))))
            (local.set $to (i32.add (local.get $y) (i32.shl
              (i32.add (local.get $j0) (i32.mul (i32.sub (local.get $n) (i32.const 1)) (local.get $m)))
              (i32.const 2))))
            (f32.store (local.get $to) (call $sum (local.get $a0)))
            (f32.store offset=4 (local.get $to) (call $sum (local.get $a1)))
            (f32.store offset=8 (local.get $to) (call $sum (local.get $a2)))
            (f32.store offset=12 (local.get $to) (call $sum (local.get $a3)))
            (local.set $i (i32.const 0)))
          (else
            (local.set $b0 (local.get $z)) (local.set $b1 (local.get $z))
            (local.set $b2 (local.get $z)) (local.set $b3 (local.get $z))
            (loop $two
              (local.set $u (v128.load (local.get $xa)))
              (local.set $v (v128.load (local.get $xb)))
              (local.set $a0 (f32x4.add (local.get $a0) (f32x4.mul (local.get $u) (v128.load (local.get $w)))))
              (local.set $b0 (f32x4.add (local.get $b0) (f32x4.mul (local.get $v) (v128.load (local.get $w)))))
              (local.set $to (i32.add (local.get $w) (local.get $long)))
              (local.set $a1 (f32x4.add (local.get $a1) (f32x4.mul (local.get $u) (v128.load (local.get $to)))))
              (local.set $b1 (f32x4.add (local.get $b1) (f32x4.mul (local.get $v) (v128.load (local.get $to)))))
              (local.set $to (i32.add (local.get $to) (local.get $long)))
              (local.set $a2 (f32x4.add (local.get $a2) (f32x4.mul (local.get $u) (v128.load (local.get $to)))))
              (local.set $b2 (f32x4.add (local.get $b2) (f32x4.mul (local.get $v) (v128.load (local.get $to)))))
              (local.set $to (i32.add (local.get $to) (local.get $long)))
              (local.set $a3 (f32x4.add (local.get $a3) (f32x4.mul (local.get $u) (v128.load (local.get $to)))))
              (local.set $b3 (f32x4.add (local.get $b3) (f32x4.mul (local.get $v) (v128.load (local.get $to)))))
              (local.set $w (i32.add (local.get $w) (i32.const 16)))
              (local.set $xa (i32.add (local.get $xa) (i32.const 16)))
              (local.set $xb (i32.add (local.get $xb) (i32.const 16)))
              (br_if $two (local.tee $t (i32.sub (local.get $t) (i32.const 4)))))
            (local.set $to (i32.add (local.get $y) (i32.shl
              (i32.add (local.get $j0) (i32.mul (i32.sub (local.get $n) (local.get $i)) (local.get $m)))
              (i32.const 2))))
            (f32.store (local.get $to) (call $sum (local.get $a0)))
            (f32.store offset=4 (local.get $to) (call $sum (local.get $a1)))
            (f32.store offset=8 (local.get $to) (call $sum (local.get $a2)))
            (f32.store offset=12 (local.get $to) (call $sum (local.get $a3)))
            (local.set $to (i32.add (local.get $to) (i32.shl (local.get $m) (i32.const 2))))
            (f32.store (local.get $to) (call $sum (local.get $b0)))
            (f32.store offset=4 (local.get $to) (call $sum (local.get $b1)))
            (f32.store offset=8 (local.get $to) (call $sum (local.get $b2)))
            (f32.store offset=12 (local.get $to) (call $sum (local.get $b3)))
            (local.set $xa (local.get $xb))
            (local.set $i (i32.sub (local.get $i) (i32.const 2)))))
        (br_if $pairs (local.get $i)))
      (local.set $q (i32.add (local.get $q) (i32.shl (local.get $row) (i32.const 2))))
      (br_if $rows (i32.lt_u (local.tee $j0 (i32.add (local.get $j0) (i32.const 4))) (local.get $j1)))))

  ;; Four rows of W at a time are added to each row of dx, by as much as dy says.
  (func (export "backward")
    (param $q i32) (param $bytes i32) (param $dy i32) (param $n i32) (param $k i32)
    (param $b0 i32) (param $b1 i32) (param $dx i32) (param $m i32) (param $scratch i32)
    (local $row i32) (local $part i32) (local $j i32) (local $i i32) (local $t i32) (local $w i32) (local $from i32)
    (local $to i32) (local $blocks i32)
    (local $c0 v128) (local $c1 v128) (local $c2 v128) (local $c3 v128)
    (local.set $row (i32.mul (local.get $bytes) (i32.shr_u (local.get $k) (i32.const 5))))
    (local.set $blocks (i32.sub (local.get $b1) (local.get $b0)))
    (local.set $part (i32.shl (local.get $blocks) (i32.const 7)))  ;; bytes of the part of a row, unpacked
    (local.set $q (i32.add (local.get $q) (i32.mul (local.get $b0) (local.get $bytes))))
    (loop $rows
      (local.set $w (local.get $scratch))
      (local.set $t (i32.const 4))
      (loop $each
        (call $unpack (local.get $q) (local.get $bytes) (local.get $blocks) (local.get $w))
        (local.set $w (i32.add (local.get $w) (local.get $part)))
        (local.set $q (i32.add (local.get $q) (local.get $row)))
        (br_if $each (local.tee $t (i32.sub (local.get $t) (i32.const 1)))))
      (local.set $i (i32.const 0))
      (loop $tokens
        (local.set $from (i32.add (local.get $dy) (i32.shl
          (i32.add (local.get $j) (i32.mul (local.get $i) (local.get $m))) (i32.const 2))))
        (local.set $c0 (v128.load32_splat (local.get $from)))
        (local.set $c1 (v128.load32_splat offset=4 (local.get $from)))
        (local.set $c2 (v128.load32_splat offset=8 (local.get $from)))
        (local.set $c3 (v128.load32_splat offset=12 (local.get $from)))
        (local.set $to (i32.add (local.get $dx) (i32.shl
          (i32.add (i32.shl (local.get $b0) (i32.const 5)) (i32.mul (local.get $i) (local.get $k))) (i32.const 2))))
        (local.set $w (local.get $scratch))
        (local.set $t (local.get $part))
        (loop $numbers
          (v128.store (local.get $to) (f32x4.add
            (f32x4.add (v128.load (local.get $to))
              (f32x4.mul (local.get $c0) (v128.load (local.get $w))))
            (f32x4.add
              (f32x4.add
                (f32x4.mul (local.get $c1) (v128.load (i32.add (local.get $w) (local.get $part))))
                (f32x4.mul (local.get $c2)
                  (v128.load (i32.add (local.get $w) (i32.shl (local.get $part) (i32.const 1))))))
              (f32x4.mul (local.get $c3)
                (v128.load (i32.add (local.get $w) (i32.mul (local.get $part) (i32.const 3))))))))
          (local.set $w (i32.add (local.get $w) (i32.const 16)))
          (local.set $to (i32.add (local.get $to) (i32.const 16)))
          (br_if $numbers (local.tee $t (i32.sub (local.get $t) (i32.const 16)))))
        (br_if $tokens (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $n))))
      (br_if $rows (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 4))) (local.get $m))))))
