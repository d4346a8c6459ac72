import { afterAll, expect, test } from 'bun:test'
import { resetSync } from '@logtape/logtape'
import { configureLogging, log } from './log.ts'

afterAll(() => resetSync())

test('a line of text, with what it is about', () => {
  const lines: string[] = []
  configureLogging({ format: 'text', level: 'info', write: (line) => lines.push(line) })
  log.info('registered {name}: {tensors} tensors', { name: 'llama', tensors: 2 })
  log.debug('not shown')
  expect(lines).toHaveLength(1)
  expect(lines[0]).toEndWith('\n')
  expect(lines[0]).toMatch(/^\S+T\S+Z .*registered .*llama.*: 2 tensors\n$/)
})

test('numbers are short in text', () => {
  const lines: string[] = []
  configureLogging({ format: 'text', level: 'info', write: (line) => lines.push(line) })
  log.info('{bytes} bytes in {seconds} s, {rate}', {
    bytes: 16_199_559_168,
    seconds: 0.4190682550000001,
    rate: 54.838123,
  })
  expect(lines[0]).toEndWith(' 16199559168 bytes in 0.4191 s, 54.84\n')
})

test('JSON lines keep the fields', () => {
  const lines: string[] = []
  configureLogging({ format: 'json', level: 'warning', write: (line) => lines.push(line) })
  log.info('not shown')
  log.error('failed: {message}', { message: 'two\nlines', code: 'internal' })
  expect(lines).toHaveLength(1)
  expect(lines[0]!.trimEnd()).not.toContain('\n')
  expect(JSON.parse(lines[0]!)).toMatchObject({
    level: 'ERROR',
    logger: 'ckpt.daemon',
    properties: { message: 'two\nlines', code: 'internal' },
  })
})

test('without a place told, lines go to stderr and never to stdout', async () => {
  const script = `
    const { configureLogging, log } = await import(${JSON.stringify(`${import.meta.dir}/log.ts`)})
    log.info('before anyone asked for it')
    configureLogging({ format: 'text', level: 'info' })
    log.info('ready')`
  const child = Bun.spawn([process.execPath, '-e', script], { stdout: 'pipe', stderr: 'pipe' })
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()])
  expect(out).toBe('')
  expect(err.trimEnd().split('\n')).toHaveLength(1)
  expect(err).toContain('ready')
})
