import { afterEach, expect, test } from 'bun:test'
import { curvePublicKey, z85Decode, z85Encode } from './zmq-keys.ts'
import { ZmqContext, zmqPoll } from './zmq.ts'

/** From zmq_curve(7). */
const SERVER_PUBLIC = 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'
const SERVER_SECRET = 'JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6'
const CLIENT_PUBLIC = 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'
const CLIENT_SECRET = 'D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs'

let contexts: ZmqContext[] = []
afterEach(() => {
  for (const context of contexts) context.close()
  contexts = []
})

function newContext(): ZmqContext {
  const context = new ZmqContext()
  contexts.push(context)
  return context
}

test('Z85 is that of RFC 32', () => {
  const bytes = Uint8Array.of(0x86, 0x4f, 0xd2, 0x6f, 0xb5, 0x59, 0xf7, 0x5b)
  expect(z85Encode(bytes)).toBe('HelloWorld')
  expect(z85Decode('HelloWorld')).toEqual(bytes)
  expect(z85Decode(z85Encode(new Uint8Array(4).fill(255)))).toEqual(new Uint8Array(4).fill(255))
  expect(() => z85Encode(new Uint8Array(3))).toThrow('4 bytes')
  expect(() => z85Decode('Hell')).toThrow('5 characters')
  expect(() => z85Decode('Hell"')).toThrow('no character')
  expect(() => z85Decode('#####')).toThrow('too large')
})

test("a secret key's public one is that of the manual", () => {
  expect(z85Encode(curvePublicKey(z85Decode(SERVER_SECRET)))).toBe(SERVER_PUBLIC)
  expect(z85Encode(curvePublicKey(z85Decode(CLIENT_SECRET)))).toBe(CLIENT_PUBLIC)
  expect(() => curvePublicKey(new Uint8Array(31))).toThrow('32 bytes')
})

/** A ROUTER behind CURVE at a free port, and what a client needs to be let in. */
function server(context: ZmqContext) {
  const router = context.socket('ROUTER')
  router.setOption('router_mandatory', 1)
  router.setOption('curve_server', 1)
  router.setKey('curve_secretkey', SERVER_SECRET)
  router.bind('tcp://127.0.0.1:0')
  const address = router.lastEndpoint()
  expect(address).toMatch(/^tcp:\/\/127\.0\.0\.1:[1-9]\d*$/)
  return { router, address }
}

function client(context: ZmqContext, address: string, serverKey: string) {
  const dealer = context.socket('DEALER')
  dealer.setOption('immediate', 1)
  dealer.setKey('curve_serverkey', serverKey)
  dealer.setKey('curve_secretkey', z85Decode(CLIENT_SECRET))
  dealer.setKey('curve_publickey', CLIENT_PUBLIC)
  const monitor = dealer.monitor()
  dealer.connect(address)
  return { dealer, monitor }
}

test('a ROUTER behind CURVE answers who has its key, and says when that one has gone', async () => {
  const context = newContext()
  const { router, address } = server(context)
  const { dealer, monitor } = client(context, address, SERVER_PUBLIC)
  expect(zmqPoll([monitor], 5000)).toEqual([true])
  expect(monitor.next()?.event).toBe('connected')
  expect(dealer.send([Uint8Array.of(1), Uint8Array.of(2)])).toBe(true)
  expect(zmqPoll([router], 5000)).toEqual([true])
  const [route, ...frames] = router.recv()!
  expect(frames).toEqual([Uint8Array.of(1), Uint8Array.of(2)])
  expect(router.sendTo(route!, [Uint8Array.of(3), Uint8Array.of(4)])).toBe('sent')
  expect(zmqPoll([dealer], 5000)).toEqual([true])
  expect(dealer.recv()).toEqual([Uint8Array.of(3), Uint8Array.of(4)])
  expect(router.sendTo(Uint8Array.of(0, 9, 9, 9, 9), [Uint8Array.of(3)])).toBe('gone')
  monitor.close()
  dealer.close()
  for (let tries = 0; router.sendTo(route!, [Uint8Array.of(5)]) !== 'gone'; tries++) {
    expect(tries).toBeLessThan(1000)
    await Bun.sleep(5)
  }
})

test('a ROUTER tells that a peer takes no more, and sends on when it does', async () => {
  const context = newContext()
  const { router, address } = server(context)
  router.setOption('sndhwm', 2)
  router.setOption('router_mandatory', 1)
  const { dealer } = client(context, address, SERVER_PUBLIC)
  for (let tries = 0; !dealer.send([Uint8Array.of(1)]); tries++) {
    expect(tries).toBeLessThan(1000)
    await Bun.sleep(5)
  }
  expect(zmqPoll([router], 5000)).toEqual([true])
  const [route] = router.recv()!
  const large = new Uint8Array(2 ** 20)
  let sent = 0
  for (; sent < 2000 && router.sendTo(route!, [large]) === 'sent'; sent++);
  expect(sent).toBeLessThan(2000)
  let received = 0
  for (let tries = 0; received < sent; tries++) {
    expect(tries).toBeLessThan(20_000)
    if (dealer.recv() === null) await Bun.sleep(1)
    else received++
  }
  expect(router.sendTo(route!, [Uint8Array.of(7)])).toBe('sent')
  expect(zmqPoll([dealer], 5000)).toEqual([true])
  expect(dealer.recv()).toEqual([Uint8Array.of(7)])
})

test('another key of the server is refused, and the monitor says so', () => {
  const context = newContext()
  const { address, router } = server(context)
  const { dealer, monitor } = client(context, address, CLIENT_PUBLIC)
  expect(zmqPoll([monitor], 5000)).toEqual([true])
  expect(monitor.next()?.event).toBe('refused')
  expect(dealer.send([Uint8Array.of(1)])).toBe(false)
  expect(router.recv()).toBeNull()
})

test('a key of another length is refused', () => {
  const dealer = newContext().socket('DEALER')
  expect(() => dealer.setKey('curve_serverkey', new Uint8Array(31))).toThrow('32 bytes')
  expect(() => dealer.setKey('curve_serverkey', 'short')).toThrow('40 characters')
})
