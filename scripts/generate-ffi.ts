/**
 * Makes `packages/cuda/src/generated.ts` (symbol table of `dlopen`, constants, struct layouts) from the C ABI's header.
 *
 * Run `bun scripts/generate-ffi.ts` after every change of `ckpt.h`; a test fails when the two differ. The header keeps one
 * declaration a line, which is what lets a few expressions read it.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const ROOT = join(import.meta.dir, '..')
export const HEADER_PATH = join(ROOT, 'packages/cuda/native/include/ckpt.h')
export const GENERATED_PATH = join(ROOT, 'packages/cuda/src/generated.ts')

interface Field {
  readonly name: string
  readonly type: string
  readonly offset: number
  /** Elements of an array field, else 1. */
  readonly count: number
}

interface Struct {
  readonly name: string
  readonly bytes: number
  readonly fields: readonly Field[]
}

interface Signature {
  readonly name: string
  readonly args: readonly string[]
  readonly returns: string
}

/** Size and alignment in bytes of the scalar types that the ABI uses (they are equal for each of them). */
const SCALAR_BYTES: Record<string, number> = {
  char: 1,
  uint8_t: 1,
  int32_t: 4,
  uint32_t: 4,
  int64_t: 8,
  uint64_t: 8,
}

const FFI_TYPES: Record<string, string> = {
  int32_t: 'i32',
  uint32_t: 'u32',
  int64_t: 'i64',
  uint64_t: 'u64',
}

function withoutComments(header: string): string {
  return header.replace(/\/\*[\s\S]*?\*\//g, '')
}

function readDefines(header: string): [string, number][] {
  const found = [...header.matchAll(/^#define (CKPT_\w+) (\d+)$/gm)]
  return found.map((match) => [String(match[1]), Number(match[2])])
}

function readEnums(header: string): [string, [string, number][]][] {
  const found = [...header.matchAll(/typedef enum (\w+) \{([^}]*)\}/g)]
  return found.map((match) => {
    const members = [...String(match[2]).matchAll(/(CKPT_\w+) = (\d+)/g)]
    return [String(match[1]), members.map((member) => [String(member[1]), Number(member[2])])]
  })
}

function readStruct(name: string, body: string): Struct {
  const fields: Field[] = []
  let offset = 0
  let alignment = 1
  for (const line of body.split(';')) {
    if (line.trim() === '') continue
    const match = /^\s*(\w+) (\w+)(?:\[(\d+)\])?$/.exec(line)
    const type = match?.[1]
    const bytes = type === undefined ? undefined : SCALAR_BYTES[type]
    if (!match?.[2] || type === undefined || bytes === undefined) {
      throw new Error(`ckpt.h: ${name}: cannot read the field "${line.trim()}"`)
    }
    const count = Number(match[3] ?? 1)
    offset = Math.ceil(offset / bytes) * bytes
    fields.push({ name: match[2], type, offset, count })
    offset += bytes * count
    alignment = Math.max(alignment, bytes)
  }
  return { name, bytes: Math.ceil(offset / alignment) * alignment, fields }
}

function readStructs(header: string): Struct[] {
  const found = [...header.matchAll(/typedef struct (\w+) \{([^}]*)\}/g)]
  return found.map((match) => readStruct(String(match[1]), String(match[2])))
}

/** A pointer is passed as a typed array: `ptr()` of a small one may dangle once the JIT optimises (oven-sh/bun#32054). */
function ffiType(symbol: string, declaration: string): string {
  if (declaration.includes('*')) return 'buffer'
  const type = FFI_TYPES[declaration.trim().split(/\s+/)[0] ?? '']
  if (type === undefined) throw new Error(`ckpt.h: ${symbol}: cannot map "${declaration.trim()}"`)
  return type
}

function readSignatures(header: string): Signature[] {
  const lines = header.split('\n').filter((line) => line.startsWith('CKPT_API '))
  return lines.map((line) => {
    const match = /^CKPT_API (\w+) (ckpt_\w+)\(([^)]*)\);\s*$/.exec(line)
    if (!match?.[1] || !match[2] || match[3] === undefined) {
      throw new Error(`ckpt.h: not one declaration a line: ${line}`)
    }
    const name = match[2]
    const args = match[3].trim() === 'void' ? [] : match[3].split(',').map((a) => ffiType(name, a))
    return { name, args, returns: ffiType(name, match[1]) }
  })
}

function camelCase(name: string): string {
  return name.toLowerCase().replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase())
}

/** `CKPT_ERR_IO` of `ckpt_status` is `STATUS_ERR_IO`; the other enums carry their subject in the member's name already. */
function constantName(enumName: string, member: string): string {
  const bare = member.replace(/^CKPT_/, '')
  return enumName === 'ckpt_status' ? `STATUS_${bare}` : bare
}

function structText(struct: Struct): string {
  const key = camelCase(struct.name.replace(/^ckpt_/, ''))
  const fields = struct.fields.map((field) => {
    const count = field.count === 1 ? '' : `, count: ${field.count}`
    return `      ${camelCase(field.name)}: { type: '${field.type}', offset: ${field.offset}${count} },\n`
  })
  const head = `    name: '${struct.name}',\n    bytes: ${struct.bytes},\n`
  return `  ${key}: {\n${head}    fields: {\n${fields.join('')}    },\n  },\n`
}

function symbolText(signature: Signature): string {
  const args = signature.args.map((type) => `'${type}'`).join(', ')
  const one = `  ${signature.name}: { args: [${args}], returns: '${signature.returns}' },\n`
  if (one.length <= 101) return one
  return `  ${signature.name}: {\n    args: [${args}],\n    returns: '${signature.returns}',\n  },\n`
}

/** The text of `generated.ts` for the text of `ckpt.h`. Throws with the line that it cannot read. */
export function generate(headerText: string): string {
  const header = withoutComments(headerText)
  const lines = ['// Made from native/include/ckpt.h by scripts/generate-ffi.ts. Do not edit.', '']
  for (const [name, value] of readDefines(header)) {
    lines.push(`export const ${name.replace(/^CKPT_/, '')} = ${value}`)
  }
  for (const [name, members] of readEnums(header)) {
    lines.push('', `// ${name}`)
    for (const [member, value] of members) {
      lines.push(`export const ${constantName(name, member)} = ${value}`)
    }
  }
  lines.push('', '/** Sizes, and offsets of the fields in bytes. */')
  const structs = readStructs(header).map(structText).join('')
  const symbols = readSignatures(header).map(symbolText).join('')
  lines.push(`export const STRUCTS = {\n${structs}} as const`, '')
  lines.push(
    '/** Symbol table for `dlopen`. */',
    `export const SYMBOLS = {\n${symbols}} as const`,
    '',
  )
  return lines.join('\n')
}

if (import.meta.main) {
  writeFileSync(GENERATED_PATH, generate(readFileSync(HEADER_PATH, 'utf8')))
}
