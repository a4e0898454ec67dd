
£

echo.protodemo.v1"
WasmSay
text (	Rtext2e
WasmEcho)
Say.demo.v1.WasmSay.demo.v1.WasmSay.
Chat.demo.v1.WasmSay.demo.v1.WasmSay(0bproto3