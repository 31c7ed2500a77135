// SPDX-License-Identifier: Apache-2.0
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;

/** A thread for each connection. Logs "PID PEERPORT" of each that it accepted. */
public class Server {
    public static void main(String[] args) throws Exception {
        long pid = ProcessHandle.current().pid();
        ServerSocket listener = new ServerSocket(Integer.parseInt(args[1]), 128, InetAddress.getByName(args[0]));
        while (true) {
            Socket c = listener.accept();
            System.out.println(pid + " " + c.getPort());
            new Thread(() -> {
                try (c) {
                    c.getInputStream().read(new byte[4096]);
                    c.getOutputStream().write("HTTP/1.0 200 OK\r\n\r\nok".getBytes());
                } catch (java.io.IOException e) {
                    System.err.println(e);
                }
            }).start();
        }
    }
}
