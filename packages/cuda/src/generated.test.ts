import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { GENERATED_PATH, generate, HEADER_PATH } from '../../../scripts/generate-ffi.ts'
import { STRUCTS, SYMBOLS } from './generated.ts'

const header = readFileSync(HEADER_PATH, 'utf8')

test('generated.ts is what the header gives (else: bun scripts/generate-ffi.ts)', () => {
  expect(readFileSync(GENERATED_PATH, 'utf8')).toBe(generate(header))
})

test('every CKPT_API line has become a symbol', () => {
  const declared = header.split('\n').filter((line) => line.startsWith('CKPT_API '))
  expect(Object.keys(SYMBOLS)).toHaveLength(declared.length)
  expect(declared.length).toBeGreaterThan(50)
})

test('a struct is laid out as C lays it out', () => {
  const text = generate(`typedef struct ckpt_odd {
  uint8_t a;
  uint64_t b;
  char c[3];
  uint32_t d;
} ckpt_odd;`)
  expect(text).toContain("name: 'ckpt_odd',\n    bytes: 24,")
  expect(text).toContain("c: { type: 'char', offset: 16, count: 3 }")
  expect(text).toContain("d: { type: 'uint32_t', offset: 20 }")
})

test('the compiler agrees about sizes and offsets', async () => {
  const compiler = Bun.which('cc') ?? Bun.which('g++') ?? Bun.which('clang')
  if (compiler === null) return console.log('skipped: no C compiler')
  const lines = Object.values(STRUCTS).flatMap(({ name, bytes, fields }) => [
    `_Static_assert(sizeof(${name}) == ${bytes}, "${name}");`,
    ...Object.entries(fields).map(([field, { offset }]) => {
      const member = field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
      return `_Static_assert(offsetof(${name}, ${member}) == ${offset}, "${name}.${member}");`
    }),
  ])
  const source = `#include <stddef.h>\n#include "${HEADER_PATH}"\n${lines.join('\n')}\n`
  const child = Bun.spawn([compiler, '-xc', '-fsyntax-only', '-'], {
    stdin: new TextEncoder().encode(source),
    stderr: 'pipe',
  })
  expect(await new Response(child.stderr).text()).toBe('')
  expect(await child.exited).toBe(0)
})

test('a declaration that cannot be read is named', () => {
  expect(() => generate('CKPT_API float ckpt_rate(void);')).toThrow('ckpt_rate')
  expect(() => generate('CKPT_API int32_t ckpt_two(void);  CKPT_API int32_t x(void);')).toThrow()
})
